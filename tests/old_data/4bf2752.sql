BEGIN TRANSACTION;
CREATE TABLE rengo_canaries (
	number INTEGER NOT NULL, 
	canary_id VARCHAR(64) NOT NULL, 
	"plan" TEXT NOT NULL, 
	at FLOAT NOT NULL, 
	PRIMARY KEY (number), 
	UNIQUE (canary_id)
);
INSERT INTO "rengo_canaries" VALUES(1,'canary-decided','{"canary_id": "canary-decided", "task": "digits", "candidate": {"run_id": "whole", "version": 1, "key": "projects/default/runs/whole/global/000001.safetensors", "sha256": "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef", "size_bytes": 9968}, "production": {"run_id": "whole", "version": 0, "key": "projects/default/runs/whole/global/000000.safetensors", "sha256": "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef", "size_bytes": 9968}, "cohort": ["a", "b"], "measured_by": "devices", "metric": "accuracy", "max_drop": 0.01, "deadline_s": 120.0, "quorum": 1, "algorithm": "fedprox", "algorithm_settings": {"mu": 0.1}, "training": {"local_epochs": 2}, "seed": 7, "bundle": {"sha256": "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef", "size_bytes": 4000}}',1.79604682700971770292e+09);
INSERT INTO "rengo_canaries" VALUES(2,'canary-undecided','{"canary_id": "canary-undecided", "task": "digits", "candidate": {"run_id": "whole", "version": 1, "key": "projects/default/runs/whole/global/000001.safetensors", "sha256": "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef", "size_bytes": 9968}, "production": {"run_id": "whole", "version": 0, "key": "projects/default/runs/whole/global/000000.safetensors", "sha256": "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef", "size_bytes": 9968}, "cohort": ["a", "b"], "measured_by": "devices", "metric": "accuracy", "max_drop": 0.01, "deadline_s": 120.0, "quorum": 1, "algorithm": "fedprox", "algorithm_settings": {"mu": 0.1}, "training": {"local_epochs": 2}, "seed": 7, "bundle": {"sha256": "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef", "size_bytes": 4000}}',1.79604682701857280725e+09);
CREATE TABLE rengo_canary_facts (
	canary_id VARCHAR(64) NOT NULL, 
	number INTEGER NOT NULL, 
	kind VARCHAR(64) NOT NULL, 
	body TEXT NOT NULL, 
	at FLOAT NOT NULL, 
	PRIMARY KEY (canary_id, number)
);
INSERT INTO "rengo_canary_facts" VALUES('canary-decided',0,'OrdersOpened','{}',1.7960468270111432076e+09);
INSERT INTO "rengo_canary_facts" VALUES('canary-decided',1,'SideMeasured','{"device_id": "a", "side": "production", "num_examples": 359, "metrics": {"accuracy": 0.61, "loss": 1.4}}',1.7960468270111432076e+09);
INSERT INTO "rengo_canary_facts" VALUES('canary-decided',2,'SideMeasured','{"device_id": "a", "side": "candidate", "num_examples": 359, "metrics": {"accuracy": 0.43, "loss": 1.9}}',1.7960468270111432076e+09);
INSERT INTO "rengo_canary_facts" VALUES('canary-decided',3,'SideDeclined','{"device_id": "b", "side": "candidate", "reason": "battery low: 12%"}',1.7960468270111432076e+09);
INSERT INTO "rengo_canary_facts" VALUES('canary-decided',4,'Judged','{"verdict": "rolled_back", "reason": "accuracy is 0.43, in production 0.61", "pairs": 1, "candidate_mean": 0.43, "production_mean": 0.61}',1.7960468270111432076e+09);
INSERT INTO "rengo_canary_facts" VALUES('canary-decided',5,'Settled','{"problem": ""}',1.7960468270111432076e+09);
INSERT INTO "rengo_canary_facts" VALUES('canary-undecided',0,'Judged','{"verdict": "inconclusive", "reason": "0 of at least 1 devices measured f1", "pairs": 0, "candidate_mean": null, "production_mean": null}',1.79604682702061271663e+09);
INSERT INTO "rengo_canary_facts" VALUES('canary-undecided',1,'Settled','{"problem": "the version was removed"}',1.79604682702061271663e+09);
CREATE TABLE rengo_facts (
	run_id VARCHAR(64) NOT NULL, 
	number INTEGER NOT NULL, 
	kind VARCHAR(64) NOT NULL, 
	body TEXT NOT NULL, 
	at FLOAT NOT NULL, 
	PRIMARY KEY (run_id, number)
);
INSERT INTO "rengo_facts" VALUES('whole',0,'RoundStarted','{"round": 1, "attempt": 1, "cohort": ["a", "b", "c"], "target": 2, "work": {"a": {"max_steps": 8, "micro_batch": 4}, "b": {"max_steps": 16, "micro_batch": 0}}}',1.7960468269789354801e+09);
INSERT INTO "rengo_facts" VALUES('whole',1,'UpdateAccepted','{"round": 1, "attempt": 1, "device_id": "a", "update": {"key": "projects/default/runs/whole/updates/000001/001/a.upd", "size_bytes": 10076, "header_sha256": "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef", "num_examples": 1099511627776, "metrics": {"train_loss": 0.25, "accuracy": 1.0}, "usage": {"train_s": 1.5, "bytes_up": 10076.0, "bytes_down": 9968.0, "steps": 400.0}}}',1.7960468269789354801e+09);
INSERT INTO "rengo_facts" VALUES('whole',2,'UpdateRefused','{"round": 1, "attempt": 1, "device_id": "b", "reason": "a value is not finite"}',1.7960468269789354801e+09);
INSERT INTO "rengo_facts" VALUES('whole',3,'OrderDeclined','{"round": 1, "attempt": 1, "device_id": "c", "reason": "too hot: 84 \u00b0C"}',1.7960468269789354801e+09);
INSERT INTO "rengo_facts" VALUES('whole',4,'UpdateWithdrawn','{"round": 1, "attempt": 1, "device_id": "a", "reason": "the object is gone"}',1.7960468269789354801e+09);
INSERT INTO "rengo_facts" VALUES('whole',5,'RoundAbandoned','{"round": 1, "attempt": 1, "reason": "the quorum of 2 was not met"}',1.7960468269789354801e+09);
INSERT INTO "rengo_facts" VALUES('whole',6,'RunPaused','{}',1.7960468269789354801e+09);
INSERT INTO "rengo_facts" VALUES('whole',7,'RunResumed','{}',1.7960468269789354801e+09);
INSERT INTO "rengo_facts" VALUES('whole',8,'RoundStarted','{"round": 1, "attempt": 2, "cohort": ["a", "b"], "target": 2, "work": {}}',1.7960468269789354801e+09);
INSERT INTO "rengo_facts" VALUES('whole',9,'UpdateAccepted','{"round": 1, "attempt": 2, "device_id": "a", "update": {"key": "projects/default/runs/whole/updates/000001/001/a.upd", "size_bytes": 10076, "header_sha256": "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef", "num_examples": 1099511627776, "metrics": {"train_loss": 0.25, "accuracy": 1.0}, "usage": {"train_s": 1.5, "bytes_up": 10076.0, "bytes_down": 9968.0, "steps": 400.0}}}',1.7960468269789354801e+09);
INSERT INTO "rengo_facts" VALUES('whole',10,'UpdateAccepted','{"round": 1, "attempt": 2, "device_id": "b", "update": {"key": "projects/default/runs/whole/updates/000001/001/b.upd", "size_bytes": 10076, "header_sha256": "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef", "num_examples": 1099511627776, "metrics": {"train_loss": 0.25, "accuracy": 1.0}, "usage": {"train_s": 1.5, "bytes_up": 10076.0, "bytes_down": 9968.0, "steps": 400.0}}}',1.7960468269789354801e+09);
INSERT INTO "rengo_facts" VALUES('whole',11,'RoundClosed','{"round": 1, "attempt": 2, "included": ["a", "b"]}',1.7960468269789354801e+09);
INSERT INTO "rengo_facts" VALUES('whole',12,'RoundCommitted','{"round": 1, "attempt": 2, "model": {"version": 1, "key": "projects/default/runs/whole/global/000001.safetensors", "sha256": "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef", "size_bytes": 9968, "state_key": "projects/default/runs/whole/state/000001.safetensors", "state_sha256": "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef", "changed": [[0, 8], [96, 9968]]}}',1.7960468269789354801e+09);
INSERT INTO "rengo_facts" VALUES('whole',13,'EvaluationRecorded','{"round": 1, "device_id": "a", "num_examples": 359, "metrics": {"accuracy": 0.93, "loss": 0.2}, "usage": {"train_s": 1.5, "bytes_up": 10076.0, "bytes_down": 9968.0, "steps": 400.0}}',1.7960468269789354801e+09);
INSERT INTO "rengo_facts" VALUES('whole',14,'RunCompleted','{}',1.7960468269789354801e+09);
INSERT INTO "rengo_facts" VALUES('stopped',0,'RunStopped','{"reason": "stopped by the operator"}',1.79604682699152159693e+09);
INSERT INTO "rengo_facts" VALUES('failed',0,'RunFailed','{"reason": "no round was committed in 50 attempts"}',1.79604682699878907209e+09);
CREATE TABLE rengo_meta (
	name VARCHAR(64) NOT NULL, 
	value BIGINT NOT NULL, 
	PRIMARY KEY (name)
);
INSERT INTO "rengo_meta" VALUES('schema_version',1);
INSERT INTO "rengo_meta" VALUES('canary_version',1);
CREATE TABLE rengo_prepared (
	run_id VARCHAR(64) NOT NULL, 
	definition TEXT NOT NULL, 
	initial TEXT NOT NULL, 
	PRIMARY KEY (run_id)
);
INSERT INTO "rengo_prepared" VALUES('prepared','{"task":"digits","rounds":1,"seed":9223372036854775807,"algorithm":{"name":"fedprox","mu":0.1,"server_learning_rate":0.5},"training":{"local_epochs":2,"learning_rate":0.05,"optimizer":"adam"},"cohort":{"size":3,"quorum":2,"over_selection":1.5,"deadline_s":60.0,"gather_s":1.0,"max_attempts":5,"fit":"time","fit_target_s":10.0},"evaluation":{"on":"devices","every":2,"deadline_s":20.0},"aggregation":{"scale_bits":24,"weight_bits":30},"models":{"keep":5,"keep_every":10,"parent":{"run_id":"digits-00000001","version":4,"sha256":"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"}},"bundle":{"sha256":"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef","size_bytes":4000}}','{"key": "projects/default/runs/prepared/global/000000.safetensors", "size_bytes": 9968}');
CREATE TABLE rengo_runs (
	number INTEGER NOT NULL, 
	run_id VARCHAR(64) NOT NULL, 
	definition TEXT NOT NULL, 
	"plan" TEXT NOT NULL, 
	initial TEXT NOT NULL, 
	at FLOAT NOT NULL, 
	PRIMARY KEY (number), 
	UNIQUE (run_id)
);
INSERT INTO "rengo_runs" VALUES(1,'whole','{"task":"digits","rounds":1,"seed":9223372036854775807,"algorithm":{"name":"fedprox","mu":0.1,"server_learning_rate":0.5},"training":{"local_epochs":2,"learning_rate":0.05,"optimizer":"adam"},"cohort":{"size":3,"quorum":2,"over_selection":1.5,"deadline_s":60.0,"gather_s":1.0,"max_attempts":5,"fit":"time","fit_target_s":10.0},"evaluation":{"on":"devices","every":2,"deadline_s":20.0},"aggregation":{"scale_bits":24,"weight_bits":30},"models":{"keep":5,"keep_every":10,"parent":{"run_id":"digits-00000001","version":4,"sha256":"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"}},"bundle":{"sha256":"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef","size_bytes":4000}}','{"run_id": "whole", "rounds": 1, "cohort_size": 3, "quorum": 2, "seed": 9223372036854775807, "over_selection": 1.5, "deadline_s": 60.0, "gather_s": 1.0, "max_attempts": 5, "evaluate_every": 2, "evaluate_on": "devices", "evaluation_deadline_s": 20.0, "fit": {"target_s": 10.0, "deadline_s": 60.0, "max_steps": 0, "known": {"a": {"step_s": 0.01, "fixed_s": 2.0, "full_steps": 400, "micro_batch": 8}}}}','{"version": 0, "key": "projects/default/runs/whole/global/000000.safetensors", "sha256": "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef", "size_bytes": 9968, "state_key": "", "state_sha256": "", "changed": null}',1.79604682696477532385e+09);
INSERT INTO "rengo_runs" VALUES(2,'stopped','{"task":"digits","rounds":1,"seed":9223372036854775807,"algorithm":{"name":"fedprox","mu":0.1,"server_learning_rate":0.5},"training":{"local_epochs":2,"learning_rate":0.05,"optimizer":"adam"},"cohort":{"size":3,"quorum":2,"over_selection":1.5,"deadline_s":60.0,"gather_s":1.0,"max_attempts":5,"fit":"time","fit_target_s":10.0},"evaluation":{"on":"devices","every":2,"deadline_s":20.0},"aggregation":{"scale_bits":24,"weight_bits":30},"models":{"keep":5,"keep_every":10,"parent":{"run_id":"digits-00000001","version":4,"sha256":"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"}},"bundle":{"sha256":"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef","size_bytes":4000}}','{"run_id": "stopped", "rounds": 1, "cohort_size": 3, "quorum": 2, "seed": 9223372036854775807, "over_selection": 1.5, "deadline_s": 60.0, "gather_s": 1.0, "max_attempts": 5, "evaluate_every": 2, "evaluate_on": "devices", "evaluation_deadline_s": 20.0, "fit": {"target_s": 10.0, "deadline_s": 60.0, "max_steps": 0, "known": {"a": {"step_s": 0.01, "fixed_s": 2.0, "full_steps": 400, "micro_batch": 8}}}}','{"version": 0, "key": "projects/default/runs/stopped/global/000000.safetensors", "sha256": "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef", "size_bytes": 9968, "state_key": "", "state_sha256": "", "changed": null}',1.79604682698670244222e+09);
INSERT INTO "rengo_runs" VALUES(3,'failed','{"task":"digits","rounds":1,"seed":9223372036854775807,"algorithm":{"name":"fedprox","mu":0.1,"server_learning_rate":0.5},"training":{"local_epochs":2,"learning_rate":0.05,"optimizer":"adam"},"cohort":{"size":3,"quorum":2,"over_selection":1.5,"deadline_s":60.0,"gather_s":1.0,"max_attempts":5,"fit":"time","fit_target_s":10.0},"evaluation":{"on":"devices","every":2,"deadline_s":20.0},"aggregation":{"scale_bits":24,"weight_bits":30},"models":{"keep":5,"keep_every":10,"parent":{"run_id":"digits-00000001","version":4,"sha256":"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"}},"bundle":{"sha256":"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef","size_bytes":4000}}','{"run_id": "failed", "rounds": 1, "cohort_size": 3, "quorum": 2, "seed": 9223372036854775807, "over_selection": 1.5, "deadline_s": 60.0, "gather_s": 1.0, "max_attempts": 5, "evaluate_every": 2, "evaluate_on": "devices", "evaluation_deadline_s": 20.0, "fit": {"target_s": 10.0, "deadline_s": 60.0, "max_steps": 0, "known": {"a": {"step_s": 0.01, "fixed_s": 2.0, "full_steps": 400, "micro_batch": 8}}}}','{"version": 0, "key": "projects/default/runs/failed/global/000000.safetensors", "sha256": "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef", "size_bytes": 9968, "state_key": "", "state_sha256": "", "changed": null}',1796046826.99346);
COMMIT;
