//! An OpenAI-compatible HTTP server: `/v1/completions`, `/v1/chat/completions`, `/v1/models`, `/health`.
//!
//! One thread speaks HTTP; another owns the model and advances all answers together, a token each, admitting new ones and letting
//! finished ones go at every step (`scheduler.rs`). An answer whose client has gone is dropped at the next step. What cannot be
//! honoured is refused with a reason, never ignored (`request.rs`).

mod error;
mod fields;
mod job;
mod patient;
mod request;
mod routes;
mod scheduler;
mod shapes;
mod writer;

/// What the fuzzer calls: bodies of requests as they come from the network, without a model behind them.
#[doc(hidden)]
pub mod fuzzing {
    use crate::request::Request;

    /// Reads a body as both kinds of requests.
    pub fn requests(body: &[u8]) {
        for read in [Request::completion, Request::chat] {
            if let Err(e) = read(body) {
                // What clients are told must be a document, whatever they sent.
                drop(e.to_json().to_string());
            }
        }
    }
}

use bitsmith_formats::{Error, ErrorKind, Result};
use bitsmith_runtime::generate::CacheType;
use bitsmith_runtime::{Model, Tokenizer};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioTimer;
use patient::Patient;
use scheduler::Scheduler;
use std::net::{SocketAddr, TcpListener};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Connections held open at once; more wait to be accepted.
const CONNECTIONS: usize = 512;
/// Bytes of a request's headers.
const HEADERS: usize = 64 * 1024;
/// Time for last words when answers are cut.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// How to serve.
#[derive(Debug, Clone)]
pub struct Options {
    /// The name or address to listen at.
    pub host: String,
    /// The port; 0 takes a free one.
    pub port: u16,
    /// The model's name for clients.
    pub model: String,
    /// Other names that clients may use.
    pub aliases: Vec<String>,
    /// Tokens that a prompt and its answer may have together; no more than the model's context.
    pub context: usize,
    /// Answers made at once.
    pub slots: usize,
    /// Answers that wait before more are refused.
    pub queue: usize,
    /// Storage of keys and values.
    pub cache: CacheType,
    /// Seed for requests that give none.
    pub seed: u64,
    /// Demanded of every client, if there is one.
    pub api_key: Option<String>,
    /// Limits of single requests.
    pub limits: Limits,
    /// Time for answers under way when the server is told to stop.
    pub grace: Duration,
}

/// Limits of single requests.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of a body.
    pub body: usize,
    /// Time for a client to send its headers, to send its body, and to take some of the answer.
    pub patience: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { body: 4 << 20, patience: Duration::from_secs(30) }
    }
}

/// What all connections share.
struct Shared {
    scheduler: Arc<Scheduler>,
    tokenizer: Arc<Tokenizer>,
    model: String,
    aliases: Vec<String>,
    context: usize,
    vocab_size: usize,
    eos: Vec<u32>,
    seed: u64,
    api_key: Option<String>,
    limits: Limits,
    /// Seconds since 1970.
    started: u64,
    numbers: AtomicU64,
    log: Box<dyn Fn(&str) + Send + Sync>,
}

impl Shared {
    /// Numbers requests from 1.
    fn next_number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// A server that listens but does not answer yet.
pub struct Server {
    options: Options,
    listener: TcpListener,
    address: SocketAddr,
    stop: watch::Sender<bool>,
}

/// Tells a server to stop. Any thread may.
#[derive(Debug, Clone)]
pub struct Stopper(watch::Sender<bool>);

impl Stopper {
    /// No more requests; those under way have the grace period.
    pub fn stop(&self) {
        self.0.send_replace(true);
    }
}

impl Server {
    /// Takes the port.
    pub fn bind(options: Options) -> Result<Self> {
        let refused = |e: std::io::Error| {
            Error::new(ErrorKind::Io, format!("cannot listen at {}:{}: {e}", options.host, options.port))
                .hint("choose another --port (0 takes a free one) or --host")
                .with_source(e)
        };
        let listener = TcpListener::bind((options.host.as_str(), options.port)).map_err(refused)?;
        listener.set_nonblocking(true).map_err(refused)?;
        let address = listener.local_addr().map_err(refused)?;
        Ok(Server { options, listener, address, stop: watch::Sender::new(false) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A handle to stop it.
    pub fn stopper(&self) -> Stopper {
        Stopper(self.stop.clone())
    }

    /// Answers requests until told to stop. `log` gets a line per request.
    pub fn run(self, model: Model, tokenizer: Tokenizer, log: impl Fn(&str) + Send + Sync + 'static) -> Result<()> {
        let Server { options, listener, stop, .. } = self;
        let spec = model.spec();
        let eos = if spec.eos.is_empty() { tokenizer.eos().to_vec() } else { spec.eos.clone() };
        let scheduler =
            Scheduler::new(scheduler::Limits { slots: options.slots.max(1), queue: options.queue, cache: options.cache });
        let shared = Arc::new(Shared {
            scheduler: scheduler.clone(),
            tokenizer: Arc::new(tokenizer),
            model: options.model,
            aliases: options.aliases,
            context: options.context.min(spec.context_length),
            vocab_size: spec.vocab_size,
            eos,
            seed: options.seed,
            api_key: options.api_key,
            limits: options.limits,
            started: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
            numbers: AtomicU64::new(0),
            log: Box::new(log),
        });
        let worker = std::thread::Builder::new().name("model".into()).spawn({
            let (scheduler, tokenizer, stop) = (scheduler.clone(), shared.tokenizer.clone(), stop.clone());
            move || {
                let sound = catch_unwind(AssertUnwindSafe(|| scheduler.run(&model, &tokenizer))).is_ok();
                // Nobody would answer any more.
                scheduler.cut();
                stop.send_replace(true);
                sound
            }
        });
        let worker = worker.map_err(|e| Error::failed(format!("cannot start the model's thread: {e}")))?;
        let failed = |e: std::io::Error| Error::failed(format!("cannot start the server: {e}"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let served = runtime.block_on(serve(shared, listener, stop.subscribe(), options.grace));
        runtime.shutdown_timeout(LAST_WORDS);
        scheduler.cut();
        match (served.map_err(failed), worker.join()) {
            (Ok(()), Ok(true)) => Ok(()),
            (Err(e), _) => Err(e),
            _ => Err(Error::failed("internal error in the model's thread").hint("please report this as a bug")),
        }
    }
}

/// Accepts connections until told to stop, then lets answers finish within `grace`.
async fn serve(
    shared: Arc<Shared>,
    listener: TcpListener,
    mut stop: watch::Receiver<bool>,
    grace: Duration,
) -> std::io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut open = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = async { (places.clone().acquire_owned().await, listener.accept().await) } => accepted,
            _ = stop.wait_for(|stop| *stop) => break,
        };
        while open.try_join_next().is_some() {}
        match accepted {
            (Ok(place), Ok((stream, _))) => {
                let (shared, stop) = (shared.clone(), stop.clone());
                open.spawn(async move {
                    connection(shared, stream, stop).await;
                    drop(place);
                });
            }
            // Out of file descriptors, for example: others will be closed.
            (_, Err(e)) => {
                (shared.log)(&format!("cannot accept a connection: {e}"));
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            (Err(_), _) => break,
        }
    }
    drop(listener);
    shared.scheduler.drain();
    let all = async { while open.join_next().await.is_some() {} };
    if timeout(grace, all).await.is_err() {
        shared.scheduler.cut();
        let all = async { while open.join_next().await.is_some() {} };
        let _ = timeout(LAST_WORDS, all).await;
    }
    Ok(())
}

/// Answers the requests of one connection. Its failures are the client's: it went away, or spoke something else.
async fn connection(shared: Arc<Shared>, stream: TcpStream, mut stop: watch::Receiver<bool>) {
    // Pieces are small and should go out at once.
    let _ = stream.set_nodelay(true);
    let patience = shared.limits.patience;
    let service = service_fn(move |request| routes::answer(shared.clone(), request));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(patience)
        .max_buf_size(HEADERS)
        .serve_connection(Patient::new(stream, patience), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => Some(ended),
        _ = stop.wait_for(|stop| *stop) => None,
    };
    if ended.is_none() {
        connection.as_mut().graceful_shutdown();
        let _ = connection.await;
    }
}
