//! The engine on Ray: a job per plan, whose driver (`driver.py`) makes a task of every node.
//!
//! The driver is a Python program because Ray has no other language for it; it knows nothing but the graph and calls `bitsmith task run`.
//! Ray starts tasks again whose process or worker died. The job itself is not started again: the same command submits what is left.

use super::plan::Plan;
use super::slurm::Round;
use super::status::{State, states};
use super::store::{Kind, Store};
use bitsmith_formats::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::ffi::OsString;
use std::path::PathBuf;

const DRIVER: &str = include_str!("driver.py");

/// How jobs are submitted.
#[derive(Debug, Clone)]
pub struct Engine {
    /// Where Ray's dashboard answers, `http://127.0.0.1:8265` for example.
    pub address: String,
    /// The Python that has Ray, on the head node.
    pub python: String,
    /// The program, where every node of the cluster has it.
    pub program: PathBuf,
    /// Its global flags.
    pub flags: Vec<OsString>,
    /// Processors of a task.
    pub cpus: usize,
}

/// The jobs that were submitted of a plan.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Submitted {
    jobs: Vec<String>,
}

impl Submitted {
    fn load(store: &Store, plan: &Plan) -> Result<Submitted> {
        let json = store.get(Kind::Run, &plan.key)?;
        // A plan that another engine began has a list of another kind.
        Ok(json.and_then(|j| serde_json::from_slice(&j).ok()).unwrap_or_default())
    }
}

/// Submits a job for all that is not done, unless one is under way.
pub fn submit(plan: &Plan, store: &Store, engine: &Engine, failed_too: bool) -> Result<Round> {
    let left = |s: &State| match s {
        State::Done => false,
        State::Failed | State::Blocked => failed_too,
        _ => true,
    };
    let nodes = states(plan, store)?.iter().filter(|s| left(s)).count();
    let mut submitted = Submitted::load(store, plan)?;
    if let Some(last) = submitted.jobs.last()
        && ["PENDING", "RUNNING"].contains(&state(engine, last)?.as_str())
    {
        return Ok(Round { queued: nodes.max(1), ..Round::default() });
    }
    if nodes == 0 || !failed_too {
        // What a job left behind that has ended, it could not do.
        return Ok(Round::default());
    }
    let id = format!("bitsmith-{}-{}", &plan.key[..12], submitted.jobs.len());
    let words = std::iter::once(engine.program.clone().into_os_string()).chain(engine.flags.iter().cloned());
    let words: Vec<String> = words.map(|w| w.to_string_lossy().into_owned()).collect();
    let task = |what: &str, more: &[&str]| {
        let own = ["task", what, "--plan", &plan.key, "--store", store.uri()];
        let all = words.iter().map(String::as_str).chain(more.iter().copied()).chain(own);
        all.map(String::from).collect::<Vec<_>>()
    };
    let batch = json!({ "run": task("run", &["--threads", &engine.cpus.to_string()]), "graph": task("graph", &["--json", "-q"]), "cpus": engine.cpus });
    let request = json!({
        "submission_id": id,
        "entrypoint": format!("{} -c \"$BITSMITH_DRIVER\"", engine.python),
        "entrypoint_num_cpus": 0,
        "runtime_env": { "env_vars": { "BITSMITH_BATCH": batch.to_string(), "BITSMITH_DRIVER": DRIVER } },
    });
    // Listed before it is there: one that is not there counts as ended.
    submitted.jobs.push(id.clone());
    store.put(Kind::Run, &plan.key, &serde_json::to_vec(&submitted).map_err(|e| Error::failed(e.to_string()))?)?;
    let address = format!("{}/api/jobs/", engine.address.trim_end_matches('/'));
    let sent = ureq::post(&address).header("Content-Type", "application/json").send(request.to_string());
    sent.map_err(|e| refused(&address, e))?;
    Ok(Round { submitted: vec![id], nodes, ..Round::default() })
}

/// Ray's word for the state of a job.
fn state(engine: &Engine, id: &str) -> Result<String> {
    let address = format!("{}/api/jobs/{id}", engine.address.trim_end_matches('/'));
    match ureq::get(&address).call() {
        Ok(mut answer) => {
            let text = answer.body_mut().read_to_string().map_err(|e| refused(&address, e))?;
            let job: Value = serde_json::from_str(&text).map_err(|e| Error::failed(format!("{address} answers no JSON: {e}")))?;
            Ok(job["status"].as_str().unwrap_or_default().to_string())
        }
        Err(ureq::Error::StatusCode(404)) => Ok("GONE".into()),
        Err(e) => Err(refused(&address, e)),
    }
}

fn refused(address: &str, e: ureq::Error) -> Error {
    let kind = if matches!(e, ureq::Error::StatusCode(400..=499)) { ErrorKind::Failed } else { ErrorKind::Transient };
    Error::new(kind, format!("Ray does not take the job at {address}: {e}")).hint("--ray names the address of its dashboard")
}
