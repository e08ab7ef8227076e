"""Serve a run's models: OpenAI's API under /v1 and the chat page at /.

Begin with `routes`: it parses requests with `request_fields` and `openai_api`, `models` turns them into jobs,
`job_queue` runs the jobs.
"""
