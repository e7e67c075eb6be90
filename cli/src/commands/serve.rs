//! `bitsmith serve`.

use crate::app::App;
use crate::args::{Compute, Kv};
use crate::interrupt;
use bitsmith_formats::{Error, Result};
use bitsmith_pipeline::Opened;
use bitsmith_pipeline::text::load;
use bitsmith_runtime::WeightSource;
use bitsmith_serve::{Limits, Options, Server};
use clap::Args;
use serde_json::json;
use std::net::SocketAddr;
use std::time::Duration;

/// The variable that may hold the API key.
const KEY_VARIABLE: &str = "BITSMITH_API_KEY";
/// Context for models that could hold more, unless --ctx says so.
const CONTEXT: usize = 8192;

const EXAMPLES: &str = "\
Examples:
  bitsmith serve model.gguf
  bitsmith serve ./model --port 0 --slots 16 --ctx 4096
  curl http://127.0.0.1:8080/v1/completions -H 'Content-Type: application/json' \\
    -d '{\"prompt\": \"Once upon a time\", \"max_tokens\": 32, \"stream\": true}'
  lm_eval --model local-completions --tasks arc_easy --model_args \\
    model=my-model,base_url=http://127.0.0.1:8080/v1/completions,tokenizer=./my-model,num_concurrent=8

Routes: GET /health, GET /v1/models, POST /v1/completions, POST /v1/chat/completions.";

/// Arguments of `serve`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// Hub id, checkpoint folder, .gguf file, or `demo`
    pub model: String,
    /// Address to listen at
    #[arg(long, value_name = "HOST", default_value = "127.0.0.1")]
    pub host: String,
    /// Port to listen at; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = 8080)]
    pub port: u16,
    /// Tokens that a prompt and its answer may have together [default: the model's context, 8192 at most]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub ctx: Option<u32>,
    /// Answers made at once
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub slots: u16,
    /// Answers that may wait for a slot; requests beyond are refused with status 503
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub queue: usize,
    /// How keys and values of tokens already read are stored
    #[arg(long, value_enum, value_name = "TYPE", default_value_t)]
    pub kv: Kv,
    /// How to compute matrix products [default: int8 on the CPU, f32 on devices]
    #[arg(long, value_enum, value_name = "MODE")]
    pub compute: Option<Compute>,
    /// The model's name for clients [default: the name that artifacts of it would take]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Demand this key of clients; better given in the variable BITSMITH_API_KEY, as others can see arguments
    #[arg(long, value_name = "KEY")]
    pub api_key: Option<String>,
    /// Largest body of a request
    #[arg(long, value_name = "SIZE", default_value = "4MiB", value_parser = crate::args::size)]
    pub max_body: u64,
    /// Seconds that a client may take to send a request, or to take some of the answer
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=86400))]
    pub timeout: u64,
    /// Seconds that answers under way may take when the server is told to stop
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(..=86400))]
    pub grace: u64,
}

/// Serves until interrupted.
pub fn run(args: &Arguments, app: &App) -> Result<()> {
    let api_key = match args.api_key.clone().or_else(|| std::env::var(KEY_VARIABLE).ok()) {
        Some(key) if key.is_empty() => return Err(Error::usage("the API key is empty")),
        key => key,
    };
    let compute = Compute::mode(args.compute, Compute::Int8, &app.context.device)?;
    let opened = Opened::find(&args.model, &app.context)?.with_compute(compute);
    let longest = opened.checkpoint.spec().context_length;
    let context = match args.ctx {
        Some(n) if n as usize > longest => {
            return Err(Error::usage(format!("--ctx {n} is more than the model's context of {longest}")));
        }
        Some(n) => n as usize,
        None => longest.min(CONTEXT),
    };
    let model = args.name.clone().unwrap_or_else(|| opened.about.name.clone());
    let server = Server::bind(Options {
        host: args.host.clone(),
        port: args.port,
        aliases: vec![args.model.clone(), opened.name.clone()],
        model: model.clone(),
        context,
        slots: args.slots.into(),
        queue: args.queue,
        cache: args.kv.into(),
        seed: app.context.seed,
        api_key,
        limits: Limits {
            body: usize::try_from(args.max_body).unwrap_or(usize::MAX),
            patience: Duration::from_secs(args.timeout),
        },
        grace: Duration::from_secs(args.grace),
    })?;
    let tokenizer = opened.tokenizer()?;
    let loaded = load(&opened, args.kv.into(), args.slots as usize * context, &app.context)?;
    drop(opened);
    let stopper = server.stopper();
    interrupt::instead(move || stopper.stop());
    announce(server.address(), &model, context, args, app)?;
    let console = app.console.clone();
    server.run(loaded, tokenizer, move |line| console.detail(line))
}

/// Says where the server is: for people on standard error, and for scripts as a document.
fn announce(address: SocketAddr, model: &str, context: usize, args: &Arguments, app: &App) -> Result<()> {
    let url = format!("http://{address}");
    app.context.progress.note(&format!("{model} is served at {url}/v1 ({} answers at once, context {context})", args.slots));
    if !address.ip().is_loopback() && args.api_key.is_none() && std::env::var_os(KEY_VARIABLE).is_none() {
        app.context.progress.warn("anyone who can reach this address can use the model: --api-key demands a key");
    }
    if app.output.is_json() {
        let document = json!({
            "url": url, "host": address.ip(), "port": address.port(), "model": model, "slots": args.slots, "ctx": context,
        });
        return app.output.result(&document, |_| String::new());
    }
    Ok(())
}
