-- kinds: combinations of the values of all filters except principles. sets: the sets of principles that rows cite.
-- place: the rank of the stage and the row's position in it. cube: the number of rows of each kind, in total (principle
-- 0) and by cited principle, so that counting takes the same time however many rows there are.

CREATE TABLE meta(key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE stages(stage TEXT PRIMARY KEY, stamp TEXT NOT NULL, last INTEGER NOT NULL, number INTEGER NOT NULL)
  WITHOUT ROWID;
CREATE TABLE kinds(
  kind INTEGER PRIMARY KEY, stage TEXT NOT NULL, state TEXT NOT NULL, reason TEXT NOT NULL, source TEXT NOT NULL,
  type TEXT NOT NULL, split TEXT NOT NULL, model TEXT NOT NULL,
  UNIQUE (stage, state, reason, source, type, split, model));
CREATE TABLE sets(cites INTEGER NOT NULL, principle INTEGER NOT NULL, PRIMARY KEY (cites, principle)) WITHOUT ROWID;
CREATE TABLE rows(
  n INTEGER PRIMARY KEY, place INTEGER NOT NULL, stage TEXT NOT NULL, id TEXT NOT NULL, about TEXT NOT NULL,
  kind INTEGER NOT NULL, cites INTEGER NOT NULL);
CREATE INDEX rows_place ON rows(place, kind);
CREATE INDEX rows_stage ON rows(stage);
CREATE UNIQUE INDEX rows_id ON rows(id, stage);
CREATE INDEX rows_about ON rows(about);
CREATE TABLE cited(principle INTEGER NOT NULL, n INTEGER NOT NULL, PRIMARY KEY (principle, n)) WITHOUT ROWID;
CREATE TABLE marks(n INTEGER PRIMARY KEY, mark TEXT NOT NULL, answer TEXT NOT NULL);
CREATE TABLE texts(n INTEGER PRIMARY KEY, topic TEXT NOT NULL, prompt TEXT NOT NULL, message TEXT NOT NULL,
  thoughts TEXT NOT NULL, answer TEXT NOT NULL);
CREATE VIRTUAL TABLE search USING fts5(
  message, thoughts, answer, content='texts', content_rowid='n', tokenize='unicode61 remove_diacritics 2');
CREATE TABLE cube(
  kind INTEGER NOT NULL, principle INTEGER NOT NULL, number INTEGER NOT NULL, PRIMARY KEY (kind, principle)
) WITHOUT ROWID;
