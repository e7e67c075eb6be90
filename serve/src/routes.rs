//! From an HTTP request to its answer.

use crate::Shared;
use crate::error::ApiError;
use crate::job::{Event, Job, Params};
use crate::request::{Prompt, Request};
use crate::shapes::{Pieces, Shape, Whole};
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::{ALLOW, AUTHORIZATION, CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::{Method, Response, StatusCode};
use serde_json::{Value, json};
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::timeout;

/// What the routes are, for those who ask for another.
const ROUTES: &str = "GET /health, GET /v1/models, POST /v1/completions and POST /v1/chat/completions";

/// The body of an answer.
pub enum Reply {
    /// All there is.
    Whole(Option<Bytes>),
    /// Events as they come.
    Pieces(Box<Pieces>, UnboundedReceiver<(usize, Event)>),
}

impl Body for Reply {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Reply::Whole(bytes) => Poll::Ready(bytes.take().map(|b| Ok(Frame::data(b)))),
            Reply::Pieces(pieces, _) if pieces.is_over() => Poll::Ready(None),
            Reply::Pieces(pieces, events) => {
                let Poll::Ready(event) = events.poll_recv(cx) else { return Poll::Pending };
                let mut text = match event {
                    Some((index, event)) => pieces.take(index, event),
                    None => pieces.take(0, Event::Failed(gone())),
                };
                // What has come meanwhile goes out together.
                while !pieces.is_over()
                    && let Ok((index, event)) = events.try_recv()
                {
                    text += &pieces.take(index, event);
                }
                Poll::Ready(Some(Ok(Frame::data(text.into()))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Reply::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Reply::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Reply::Pieces(..) => SizeHint::default(),
        }
    }
}

/// The model's thread has ended before the answer did.
fn gone() -> ApiError {
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "the answer was broken off")
}

fn document(status: StatusCode, value: &Value) -> Response<Reply> {
    let mut response = Response::new(Reply::Whole(Some(value.to_string().into())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// An error as a response.
fn refusal(e: &ApiError) -> Response<Reply> {
    let mut response = document(e.status, &e.to_json());
    let headers = response.headers_mut();
    if e.is_passing() {
        headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    // The rest of the request was not read.
    if matches!(e.status, StatusCode::PAYLOAD_TOO_LARGE | StatusCode::REQUEST_TIMEOUT) {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Answers one request.
pub async fn answer(shared: Arc<Shared>, request: hyper::Request<Incoming>) -> Result<Response<Reply>, Infallible> {
    let line = format!("{} {}", request.method(), request.uri().path());
    let response = match route(&shared, request).await {
        Ok(response) => response,
        Err(e) => refusal(&e),
    };
    (shared.log)(&format!("{line}: {}", response.status().as_u16()));
    Ok(response)
}

async fn route(shared: &Arc<Shared>, request: hyper::Request<Incoming>) -> Result<Response<Reply>, ApiError> {
    let path = request.uri().path().to_string();
    let allowed = match path.as_str() {
        "/health" | "/v1/models" => Method::GET,
        "/v1/completions" | "/v1/chat/completions" => Method::POST,
        p if p.starts_with("/v1/models/") => Method::GET,
        _ => return Err(ApiError::new(StatusCode::NOT_FOUND, format!("no such route: {path}. There are {ROUTES}"))),
    };
    if *request.method() != allowed {
        let message = format!("{path} answers {allowed}, not {}", request.method());
        let mut response = refusal(&ApiError::new(StatusCode::METHOD_NOT_ALLOWED, message));
        let allow = HeaderValue::from_static(if allowed == Method::GET { "GET" } else { "POST" });
        response.headers_mut().insert(ALLOW, allow);
        return Ok(response);
    }
    if path == "/health" {
        return health(shared);
    }
    authorise(shared, &request)?;
    match path.as_str() {
        "/v1/models" => Ok(document(StatusCode::OK, &json!({"object": "list", "data": [model(shared)]}))),
        "/v1/completions" => generate(shared, Request::completion(&read(shared, request).await?)?).await,
        "/v1/chat/completions" => generate(shared, Request::chat(&read(shared, request).await?)?).await,
        _ => {
            check_model(shared, path.strip_prefix("/v1/models/"))?;
            Ok(document(StatusCode::OK, &model(shared)))
        }
    }
}

fn health(shared: &Shared) -> Result<Response<Reply>, ApiError> {
    if shared.scheduler.is_stopping() {
        return Err(ApiError::stopping());
    }
    let (running, waiting) = shared.scheduler.load();
    Ok(document(StatusCode::OK, &json!({"status": "ok", "running": running, "waiting": waiting})))
}

fn model(shared: &Shared) -> Value {
    json!({
        "id": shared.model, "object": "model", "created": shared.started, "owned_by": "bitsmith",
        "max_model_len": shared.context,
    })
}

fn check_model(shared: &Shared, wanted: Option<&str>) -> Result<(), ApiError> {
    match wanted {
        Some(name) if name != shared.model && !shared.aliases.iter().any(|a| a == name) => {
            let message = format!("no such model: `{name}`. This server has `{}`", shared.model);
            let error = ApiError::new(StatusCode::NOT_FOUND, message).code("model_not_found");
            Err(ApiError { param: Some("model".into()), ..error })
        }
        _ => Ok(()),
    }
}

fn authorise(shared: &Shared, request: &hyper::Request<Incoming>) -> Result<(), ApiError> {
    let Some(key) = &shared.api_key else { return Ok(()) };
    let given = request.headers().get(AUTHORIZATION).and_then(|v| v.as_bytes().strip_prefix(b"Bearer "));
    // Takes as long for a wrong byte at the end as for one at the start.
    let same = |given: &[u8]| {
        given.len() == key.len() && given.iter().zip(key.as_bytes()).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
    };
    if given.is_some_and(same) {
        return Ok(());
    }
    let what = if given.is_some() { "wrong API key" } else { "no API key: send it as `Authorization: Bearer KEY`" };
    Err(ApiError::new(StatusCode::UNAUTHORIZED, what).code("invalid_api_key"))
}

/// The body, if it is JSON and not too large.
async fn read(shared: &Shared, request: hyper::Request<Incoming>) -> Result<Bytes, ApiError> {
    let content = request.headers().get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    if !content.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/json") {
        // Also keeps web pages from posting: browsers ask first before they send this type elsewhere.
        let message = "the request needs the header `Content-Type: application/json`";
        return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
    }
    let limit = shared.limits.body;
    let too_large = || ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the body is larger than {limit} bytes"));
    let length = request.headers().get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|n| n > limit as u64) {
        return Err(too_large());
    }
    match timeout(shared.limits.patience, Limited::new(request.into_body(), limit).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(e)) if e.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(e)) => Err(ApiError::bad(format!("the body cannot be read: {e}"))),
        Err(_) => Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "the body did not arrive in time")),
    }
}

/// Makes the answers to a request.
async fn generate(shared: &Arc<Shared>, request: Request) -> Result<Response<Reply>, ApiError> {
    check_model(shared, request.model.as_deref())?;
    if shared.scheduler.is_stopping() {
        return Err(ApiError::stopping());
    }
    // Long texts take a while to cut into tokens.
    let (events, mut inbox) = unbounded_channel();
    let prepared = {
        let (shared, request) = (shared.clone(), request.clone());
        tokio::task::spawn_blocking(move || prepare(&shared, &request, events))
    };
    let (jobs, shape) = prepared.await.map_err(|_| gone())??;
    shared.scheduler.submit(jobs)?;
    if request.stream {
        let mut response = Response::new(Reply::Pieces(Box::new(Pieces::new(shape, &request)), inbox));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        return Ok(response);
    }
    let mut whole = Whole::new(shape);
    while !whole.is_whole() {
        let (index, event) = inbox.recv().await.ok_or_else(gone)?;
        whole.take(index, event)?;
    }
    Ok(document(StatusCode::OK, &whole.to_json()))
}

type Events = tokio::sync::mpsc::UnboundedSender<(usize, Event)>;

/// Token ids of all prompts, and a job for each answer.
fn prepare(shared: &Shared, request: &Request, events: Events) -> Result<(Vec<Job>, Shape), ApiError> {
    let prompts = request.prompts.iter().map(|p| tokens(shared, p)).collect::<Result<Vec<_>, _>>()?;
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
    let room = shared.context.saturating_sub(longest);
    let max_tokens = request.max_tokens.unwrap_or(room);
    if longest + max_tokens > shared.context || (room == 0 && request.max_tokens.is_none()) {
        let message = format!(
            "the model's context holds {} tokens; the prompt has {longest} and {max_tokens} more are asked for: shorten one of them",
            shared.context
        );
        let param = if request.chat { "messages" } else { "prompt" };
        return Err(ApiError::field(param, message).code("context_length_exceeded"));
    }
    if let Some((id, _)) = request.sampling.bias.iter().find(|(id, _)| *id as usize >= shared.vocab_size) {
        return Err(ApiError::field("logit_bias", format!("token {id} is outside the vocabulary of {}", shared.vocab_size)));
    }
    // A stop string that is a special token never shows up as text.
    let special = request.stop.iter().filter_map(|s| shared.tokenizer.id_of(s)).filter(|id| shared.tokenizer.is_special(*id));
    let eos = shared.eos.iter().copied().filter(|_| !request.ignore_eos);
    let params = Arc::new(Params {
        max_tokens,
        min_tokens: request.min_tokens,
        ends: eos.chain(special).collect(),
        stop: request.stop.clone(),
        echo: request.echo,
        logprobs: request.logprobs,
    });
    let unseeded = shared.next_number();
    let mut jobs = Vec::with_capacity(prompts.len() * request.n);
    let mut echo = Vec::with_capacity(prompts.len() * request.n);
    for (source, prompt) in request.prompts.iter().zip(&prompts) {
        let text = match (request.echo, source) {
            (false, _) | (_, Prompt::Chat(_)) => None,
            (true, Prompt::Text(text)) => Some(text.clone()),
            (true, Prompt::Tokens(ids)) => Some(shared.tokenizer.decode(ids, true)?),
        };
        for choice in 0..request.n as u64 {
            let seed = if request.seeded { request.sampling.seed } else { shared.seed ^ unseeded.rotate_left(32) };
            let sampling = bitsmith_runtime::sampler::Sampling { seed: seed.wrapping_add(choice), ..request.sampling.clone() };
            let (params, events) = (params.clone(), events.clone());
            jobs.push(Job { index: jobs.len(), prompt: prompt.clone(), sampling, params, events });
            echo.push(text.clone());
        }
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let kind = if request.chat { "chatcmpl" } else { "cmpl" };
    let shape = Shape {
        id: format!("{kind}-{:08x}{:08x}", shared.started as u32, unseeded),
        created: now,
        model: shared.model.clone(),
        tokenizer: shared.tokenizer.clone(),
        chat: request.chat,
        logprobs: request.logprobs.is_some(),
        echo,
        prompt_tokens: prompts.iter().map(Vec::len).sum(),
    };
    Ok((jobs, shape))
}

/// The token ids of a prompt: at least one, all in the vocabulary.
fn tokens(shared: &Shared, prompt: &Prompt) -> Result<Vec<u32>, ApiError> {
    let param = if matches!(prompt, Prompt::Chat(_)) { "messages" } else { "prompt" };
    let ids = match prompt {
        Prompt::Text(text) => shared.tokenizer.encode(text, true)?,
        Prompt::Tokens(ids) => ids.clone(),
        // Templates may refuse an order of roles, for example: the client's mistake.
        Prompt::Chat(messages) => {
            let text = shared.tokenizer.apply_chat(messages, true).map_err(|e| ApiError::field(param, e.message))?;
            shared.tokenizer.encode(&text, false)?
        }
    };
    if let Some(bad) = ids.iter().find(|id| **id as usize >= shared.vocab_size) {
        return Err(ApiError::field(param, format!("token {bad} is outside the vocabulary of {}", shared.vocab_size)));
    }
    if ids.is_empty() {
        return Err(ApiError::field(param, "the prompt has no tokens"));
    }
    Ok(ids)
}
