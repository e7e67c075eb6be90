//! serve: every route, what it refuses, many clients at once, and how it stops.

use crate::support::{Ended, Work};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A running server on the demo model.
struct Served {
    _work: Work,
    child: Child,
    port: u16,
    document: Value,
}

impl Served {
    fn start(options: &str) -> Self {
        Self::of(Work::new(), "demo", options)
    }

    fn of(work: Work, model: &str, options: &str) -> Self {
        let mut command = work.command(&format!("--json serve {model} --port 0 {options}"));
        let mut child = command.env("BITSMITH_API_KEY", "").env_remove("BITSMITH_API_KEY").spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let document: Value = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}"));
        let port = document["port"].as_u64().unwrap() as u16;
        Served { _work: work, child, port, document }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream
    }

    /// A connection on which a request has been sent.
    fn send(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> TcpStream {
        let mut stream = self.connect();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}Content-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        // A server that refuses a large body does not read it.
        let _ = stream.write_all(body);
        stream
    }

    fn ask(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> Answer {
        Answer::read(self.send(method, path, headers, body))
    }

    fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, "", b"")
    }

    fn post(&self, path: &str, body: impl AsRef<[u8]>) -> Answer {
        self.ask("POST", path, JSON, body.as_ref())
    }

    /// A completion that succeeds.
    fn complete(&self, body: Value) -> Value {
        let answer = self.post("/v1/completions", body.to_string());
        assert_eq!(answer.status, 200, "{body}: {}", answer.body);
        answer.json()
    }

    fn health(&self) -> Value {
        self.get("/health").json()
    }

    /// Waits until nothing is being answered.
    fn rests(&self) {
        let start = Instant::now();
        while self.health() != json!({"status": "ok", "running": 0, "waiting": 0}) {
            assert!(start.elapsed() < Duration::from_secs(30), "{}", self.health());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn signal(&self, name: &str) {
        let done = Command::new("kill").args([format!("-{name}"), self.child.id().to_string()]).status().unwrap();
        assert!(done.success());
    }

    fn wait(mut self) -> Ended {
        let output = std::mem::replace(&mut self.child, Command::new("true").stdout(Stdio::null()).spawn().unwrap());
        Ended::of(output.wait_with_output().unwrap())
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const JSON: &str = "Content-Type: application/json\r\n";

struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn read(mut stream: TcpStream) -> Self {
        let mut raw = Vec::new();
        let ended = stream.read_to_end(&mut raw);
        let text = String::from_utf8(raw).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?} {ended:?}"));
        let head = head.to_lowercase();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let body = if head.contains("transfer-encoding: chunked") { unchunked(body) } else { body.to_string() };
        Answer { status, head, body }
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.body))
    }

    /// The events of a stream, which must end as it should.
    fn events(&self) -> Vec<Value> {
        assert!(self.head.contains("content-type: text/event-stream"), "{}", self.head);
        let mut lines: Vec<&str> = self.body.split("\n\n").collect();
        assert_eq!(lines.split_off(lines.len() - 2), ["data: [DONE]", ""], "{}", self.body);
        lines.iter().map(|l| serde_json::from_str(l.strip_prefix("data: ").unwrap()).unwrap()).collect()
    }
}

fn unchunked(mut rest: &str) -> String {
    let mut out = String::new();
    while let Some((size, after)) = rest.split_once("\r\n") {
        let n = usize::from_str_radix(size, 16).unwrap();
        out.push_str(&after[..n]);
        rest = after.get(n + 2..).unwrap_or("");
    }
    out
}

fn text(document: &Value) -> &str {
    document["choices"][0]["text"].as_str().unwrap()
}

#[test]
fn completions_are_what_generate_prints() {
    let work = Work::new();
    let greedy = work.json("generate demo -p The -n 24");
    let sampled = work.json("generate demo -p The -n 24 --temp 0.9 --top-k 40 --top-p 0.95 --seed 3");
    let served = Served::of(work, "demo", "");
    assert_eq!((&served.document["host"], &served.document["ctx"]), (&json!("127.0.0.1"), &json!(512)));
    let document = served.complete(json!({"prompt": "The", "max_tokens": 24, "temperature": 0}));
    assert_eq!(document["choices"][0]["text"], greedy["text"]);
    assert_eq!((&document["object"], &document["model"]), (&json!("text_completion"), &served.document["model"]));
    let reason = if greedy["stop"] == "eos" { "stop" } else { "length" };
    assert_eq!(document["choices"][0]["finish_reason"], reason);
    let n = greedy["prompt_tokens"].as_u64().unwrap();
    let usage = json!({"prompt_tokens": n, "completion_tokens": 24, "total_tokens": n + 24});
    assert_eq!(document["usage"], usage);
    let body = json!({"prompt": "The", "max_tokens": 24, "temperature": 0.9, "top_k": 40, "top_p": 0.95, "seed": 3});
    assert_eq!(served.complete(body)["choices"][0]["text"], sampled["text"]);

    // A stop string in the middle of what would come, streamed and not, and through `generate`.
    let whole = greedy["text"].as_str().unwrap();
    let (middle, _) = whole.char_indices().nth(whole.chars().count() / 2).unwrap();
    let stop: String = whole[middle..].chars().take(4).collect();
    let want = &whole[..whole.find(&stop).unwrap()];
    let mut body = json!({"prompt": "The", "max_tokens": 24, "temperature": 0, "stop": [stop, "never"], "logprobs": 0});
    let stopped = served.complete(body.clone());
    assert_eq!((text(&stopped), &stopped["choices"][0]["finish_reason"]), (want, &json!("stop")));
    assert_eq!(
        stopped["choices"][0]["logprobs"]["tokens"]
            .as_array()
            .unwrap()
            .iter()
            .map(|t| t.as_str().unwrap())
            .collect::<String>()
            .get(..want.len()),
        Some(want)
    );
    body["stream"] = true.into();
    body["stream_options"] = json!({"include_usage": true});
    let mut events = served.post("/v1/completions", body.to_string()).events();
    let last = events.pop().unwrap();
    assert_eq!((&last["choices"], &last["usage"]), (&json!([]), &stopped["usage"]));
    assert_eq!(events.iter().map(text).collect::<String>(), want);
    assert_eq!(events.last().unwrap()["choices"][0]["finish_reason"], "stop");
    assert!(events.iter().all(|e| e["usage"].is_null() && e["id"] == last["id"]) && events.len() > 2);
    let output = served
        ._work
        .prepare(env!("CARGO_BIN_EXE_bitsmith"))
        .args(["generate", "demo", "-p", "The", "-n", "24", "--stop", &stop])
        .output()
        .unwrap();
    let output = Ended::of(output);
    assert_eq!(output.out, format!("{want}\n"));
    assert!(output.err.contains("tokens/s") && output.err.contains("stopped at: stop"), "{}", output.err);
    for key in ["seconds_to_first_token", "tokens_per_second"] {
        assert!(greedy[key].as_f64().unwrap() > 0.0, "{greedy}");
    }
}

#[test]
fn prompts_are_scored_as_logits_scores_them() {
    let work = Work::new();
    let ids = [5, 6, 7, 200, 31, 900];
    work.write("t.json", json!({"sequences": [ids]}).to_string());
    let wanted = work.json("logits demo --tokens t.json --top 2048")["sequences"][0].clone();
    let logprob = |position: usize, id: u64| {
        let top = wanted[position]["top"].as_array().unwrap();
        top.iter().find(|t| t[0] == id).unwrap()[1].as_f64().unwrap()
    };
    let served = Served::of(work, "demo", "");
    // As lm-evaluation-harness asks: several prompts of token ids, one token more.
    let body = json!({"prompt": [ids, ids[..3]], "max_tokens": 1, "logprobs": 2, "echo": true, "temperature": 0, "seed": 1234});
    let document = served.complete(body);
    let choices = document["choices"].as_array().unwrap();
    for (choice, n) in choices.iter().zip([6, 3]) {
        let scores = &choice["logprobs"];
        for key in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
            assert_eq!(scores[key].as_array().unwrap().len(), n + 1, "{key}");
        }
        assert_eq!((&scores["token_logprobs"][0], &scores["top_logprobs"][0]), (&Value::Null, &Value::Null));
        for i in 1..n {
            let found = scores["token_logprobs"][i].as_f64().unwrap();
            assert!((found - logprob(i - 1, ids[i])).abs() < 1e-4, "{i}");
            let top: Vec<f64> = scores["top_logprobs"][i].as_object().unwrap().values().map(|v| v.as_f64().unwrap()).collect();
            let best = wanted[i - 1]["top"][0][1].as_f64().unwrap();
            let most = top.iter().copied().fold(f64::MIN, f64::max);
            assert!((most - best).abs() < 1e-4 && top.contains(&found) && top.len() <= 3, "{i}");
        }
        // The greedy token after the prompt is its own best alternative.
        let last = scores["token_logprobs"][n].as_f64().unwrap();
        assert!(scores["top_logprobs"][n].as_object().unwrap().values().all(|v| v.as_f64().unwrap() <= last));
    }
    // No token more; an echo of text; offsets in it.
    let none = served.complete(json!({"prompt": "Ünder the lighthouse", "max_tokens": 0, "logprobs": 0, "echo": true}));
    assert_eq!((text(&none), &none["usage"]["completion_tokens"]), ("Ünder the lighthouse", &json!(0)));
    let scores = &none["choices"][0]["logprobs"];
    let characters: Vec<char> = text(&none).chars().collect();
    for (token, offset) in scores["tokens"].as_array().unwrap().iter().zip(scores["text_offset"].as_array().unwrap()) {
        let (token, offset) = (token.as_str().unwrap(), offset.as_u64().unwrap() as usize);
        let there: String = characters[offset..].iter().collect();
        assert!(there.starts_with(token) || token.starts_with("bytes:"), "{token:?} at {offset}");
    }
    let echoed = served.post(
        "/v1/completions",
        json!({"prompt": "Hi", "max_tokens": 3, "echo": true, "stream": true, "n": 2, "temperature": 0}).to_string(),
    );
    let mut texts = [String::new(), String::new()];
    for event in echoed.events() {
        let choice = &event["choices"][0];
        texts[choice["index"].as_u64().unwrap() as usize].push_str(choice["text"].as_str().unwrap());
    }
    assert!(texts[0].starts_with("Hi") && texts[0].len() > 2 && texts[0] == texts[1], "{texts:?}");
}

#[test]
fn chats() {
    let work = Work::new();
    let folder = work.checkpoint("chat");
    let template = "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:";
    crate::support::edit_json(&folder.join("tokenizer_config.json"), "chat_template", json!(template));
    let want = work.json("generate chat --chat --system Short -p Hi -n 8")["text"].clone();
    let served = Served::of(work, "chat", "--name my-chat --kv f32");
    let messages = json!([{"role": "system", "content": "Short"}, {"role": "user", "content": [{"type": "text", "text": "Hi"}]}]);
    let mut body = json!({"model": "my-chat", "messages": messages, "max_completion_tokens": 8, "temperature": 0, "logprobs": true, "top_logprobs": 2});
    let answer = served.post("/v1/chat/completions", body.to_string()).json();
    let choice = &answer["choices"][0];
    assert_eq!((&answer["object"], &choice["message"]["role"]), (&json!("chat.completion"), &json!("assistant")));
    assert_eq!(choice["message"]["content"], want);
    let scores = choice["logprobs"]["content"].as_array().unwrap();
    assert_eq!(answer["usage"]["completion_tokens"], scores.len());
    for s in scores {
        assert_eq!((&s["top_logprobs"][0]["logprob"], s["top_logprobs"].as_array().unwrap().len()), (&s["logprob"], 2));
        assert!(s["bytes"].is_array() && s["token"].is_string());
    }
    body["stream"] = true.into();
    let events = served.post("/v1/chat/completions", body.to_string()).events();
    assert_eq!(events[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    let deltas = events.iter().filter_map(|e| e["choices"][0]["delta"]["content"].as_str());
    assert_eq!(deltas.collect::<String>(), want);
    let streamed = events.iter().filter_map(|e| e["choices"][0]["logprobs"]["content"].as_array()).map(Vec::len).sum::<usize>();
    assert_eq!(streamed, scores.len());
    let last = events.last().unwrap();
    assert_eq!((&last["object"], &last["choices"][0]["delta"]), (&json!("chat.completion.chunk"), &json!({})));
    // The template's own refusal is the client's mistake; what it cannot be given is said.
    let tool = served.post("/v1/chat/completions", r#"{"messages": [{"role": "tool", "content": "x"}]}"#);
    assert_eq!(tool.status, 400);
    assert!(tool.body.contains("no tools"), "{}", tool.body);
    let plain = Served::of(Work::new(), "demo", "");
    let none = plain.post("/v1/chat/completions", r#"{"messages": [{"role": "user", "content": "x"}]}"#);
    let known = none.status == 400 && none.body.contains("chat template") || none.status == 200;
    assert!(known, "{} {}", none.status, none.body);
}

#[test]
fn nonsense_is_refused_with_a_reason() {
    let served = Served::start("--max-body 64KiB --timeout 1");
    let refused = |answer: Answer, status: u16, part: &str| {
        assert_eq!(answer.status, status, "{part}: {}", answer.body);
        let error = &answer.json()["error"];
        let keys: Vec<&String> = error.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["message", "type", "param", "code"]);
        assert!(error["message"].as_str().unwrap().contains(part), "{part}: {error}");
    };
    let post = |body: &str| served.post("/v1/completions", body);
    for body in ["", "{", "[]", "\u{0}", "{\"prompt\": \"a\"} more", &"[".repeat(1000)] {
        refused(post(body), 400, "body");
    }
    refused(post("{}"), 400, "`prompt` is missing");
    refused(post(r#"{"prompt": {"a": 1}}"#), 400, "`prompt` must be a string");
    refused(post(r#"{"prompt": "a", "temperature": "hot"}"#), 400, "`temperature` must be a number");
    refused(post(r#"{"prompt": "a", "grammar": "x"}"#), 400, "unknown field `grammar`");
    refused(post(r#"{"prompt": "a", "suffix": "x"}"#), 400, "`suffix` is not supported");
    refused(post(r#"{"prompt": "a", "max_tokens": 600}"#), 400, "context holds 512 tokens");
    refused(post(r#"{"prompt": [2048]}"#), 400, "outside the vocabulary of 2048");
    refused(post(r#"{"prompt": [[5], []]}"#), 400, "no tokens");
    refused(post(r#"{"prompt": "a", "logit_bias": {"2048": 1}}"#), 400, "outside the vocabulary");
    refused(post(r#"{"prompt": "a", "model": "gpt-4"}"#), 404, "no such model");
    refused(served.post("/v1/chat/completions", r#"{"messages": "hi"}"#), 400, "`messages` must be a list");
    refused(served.get("/v1/engines"), 404, "POST /v1/completions");
    refused(served.get("/v1/models/gpt-4"), 404, "no such model");
    refused(served.get("/v1/completions"), 405, "POST");
    refused(served.post("/health", "{}"), 405, "GET");
    refused(served.ask("POST", "/v1/completions", "Content-Type: text/plain\r\n", b"{}"), 415, "application/json");
    refused(post(&format!("{{\"prompt\": \"{}\"}}", "a".repeat(70_000))), 413, "larger than 65536 bytes");
    // Chunks, whose sum is not announced.
    let mut stream = served.connect();
    stream
        .write_all(format!("POST /v1/completions HTTP/1.1\r\nHost: x\r\n{JSON}Transfer-Encoding: chunked\r\n\r\n").as_bytes())
        .unwrap();
    for _ in 0..9 {
        let _ = stream.write_all(format!("2000\r\n{}\r\n", "a".repeat(0x2000)).as_bytes());
    }
    refused(Answer::read(stream), 413, "larger");
    // A body that never comes.
    let mut stream = served.connect();
    stream
        .write_all(format!("POST /v1/completions HTTP/1.1\r\nHost: x\r\n{JSON}Content-Length: 9\r\n\r\n{{").as_bytes())
        .unwrap();
    refused(Answer::read(stream), 408, "in time");
    // Headers that never end, and what is not HTTP: the connection is closed.
    for start in ["GET /health HTTP/1.1\r\nHost:", "\u{16}\u{3}\u{1}nonsense\r\n\r\n"] {
        let mut stream = served.connect();
        stream.write_all(start.as_bytes()).unwrap();
        let mut rest = String::new();
        let _ = stream.read_to_string(&mut rest);
        assert!(rest.is_empty() || rest.starts_with("HTTP/1.1 4"), "{rest}");
    }
    // All that did no harm.
    assert_eq!(served.complete(json!({"prompt": "a", "max_tokens": 2}))["usage"]["completion_tokens"], 2);
    let models = served.get("/v1/models").json();
    assert_eq!((&models["object"], &models["data"][0]["id"]), (&json!("list"), &served.document["model"]));
    let id = served.document["model"].as_str().unwrap();
    assert_eq!(served.get(&format!("/v1/models/{id}")).json(), models["data"][0]);
    served.rests();
}

#[test]
fn keys_are_demanded_and_not_shown() {
    let work = Work::new();
    let served = Served::of(work, "demo", "--api-key s3cret");
    let with = |key: &str| served.ask("GET", "/v1/models", &format!("Authorization: Bearer {key}\r\n"), b"").status;
    assert_eq!((served.get("/v1/models").status, with("wrong!"), with("s3cre"), with("s3cret")), (401, 401, 401, 200));
    assert_eq!(served.get("/health").status, 200);
    served.signal("TERM");
    let ended = served.wait();
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    assert!(!ended.err.contains("s3cret") && !ended.out.contains("s3cret"));
    let work = Work::new();
    work.fails("serve demo --ctx 513", 2);
    work.fails("serve demo --host not.a.host.invalid", 74);
    work.fails("serve demo --max-ram 1MiB --port 0", 2);
}

#[test]
fn clients_at_once_get_what_they_get_alone() {
    let served = Served::start("--slots 8");
    let prompts =
        ["The lighthouse", "A B C", "def main():", "In 1999", "é", "Once upon a time there was a", "x", "Then she said"];
    let body = |i: usize| {
        let mut body =
            json!({"prompt": prompts[i], "max_tokens": 20 + 15 * i, "logprobs": 1, "echo": i.is_multiple_of(3), "n": 1 + i % 2});
        if i.is_multiple_of(2) {
            body["temperature"] = 0.into();
        } else {
            body["seed"] = i.into();
        }
        body
    };
    let answer = |i: usize| -> Vec<(Value, Value)> {
        let choices = served.complete(body(i))["choices"].clone();
        choices.as_array().unwrap().iter().map(|c| (c["text"].clone(), c["logprobs"]["tokens"].clone())).collect()
    };
    let alone: Vec<_> = (0..8).map(answer).collect();
    let together: Vec<_> = std::thread::scope(|s| {
        let threads: Vec<_> = (0..8).map(|i| s.spawn(move || (0..4).map(|_| answer(i)).collect::<Vec<_>>())).collect();
        // Meanwhile others come, take a little and go.
        for i in 0..12 {
            let long = json!({"prompt": "Long", "max_tokens": 500, "stream": i % 3 > 0, "ignore_eos": true});
            let mut gone = served.send("POST", "/v1/completions", JSON, long.to_string().as_bytes());
            if i % 3 == 1 {
                gone.read_exact(&mut [0; 200]).unwrap();
            }
        }
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    for (i, (alone, together)) in alone.iter().zip(&together).enumerate() {
        assert!(together.iter().all(|t| t == alone), "{i}: {alone:?} {together:?}");
    }
    served.rests();
}

#[test]
fn more_than_fits_is_turned_away() {
    let served = Served::start("--slots 1 --queue 1");
    let long = json!({"prompt": "Long", "max_tokens": 500, "stream": true, "ignore_eos": true}).to_string();
    let mut first = served.send("POST", "/v1/completions", JSON, long.as_bytes());
    first.read_exact(&mut [0; 300]).unwrap();
    let second = served.send("POST", "/v1/completions", JSON, long.as_bytes());
    let start = Instant::now();
    while served.health()["waiting"] != 1 {
        assert!(start.elapsed() < Duration::from_secs(20), "{}", served.health());
    }
    let third = served.post("/v1/completions", &long);
    assert_eq!((third.status, &third.json()["error"]["code"]), (503, &json!("overloaded")));
    assert!(third.head.contains("retry-after: 1"), "{}", third.head);
    // Both go away: their places are free at once.
    drop((first, second));
    served.rests();
    served.complete(json!({"prompt": "a", "max_tokens": 1}));
}

/// Raw requests with bytes changed, cut off and doubled, some of which are never finished: always the same ones.
#[test]
fn whatever_is_sent_it_goes_on() {
    let served = Served::start("--slots 2 --queue 4");
    let body = json!({"prompt": "a", "max_tokens": 1, "stop": ["b"], "logprobs": 1}).to_string();
    let whole = format!(
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{JSON}Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut state = 7u32;
    let mut next = |n: usize| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as usize % n
    };
    let mut hanging = Vec::new();
    for number in 0..300 {
        let mut bytes = whole.clone().into_bytes();
        for _ in 0..1 + next(5) {
            let (at, n) = (next(bytes.len()), 1 + next(12));
            let end = (at + n).min(bytes.len());
            match next(5) {
                0 => bytes[at..end].iter_mut().for_each(|b| *b = next(256) as u8),
                1 => drop(bytes.drain(at..end)),
                2 => {
                    let part = bytes[at..end].to_vec();
                    bytes.splice(at..at, part);
                }
                3 => drop(bytes.splice(at..at, "9".repeat(n).into_bytes())),
                _ => drop(bytes.splice(at..at, b"\r\n".repeat(n))),
            }
            if bytes.is_empty() {
                bytes.push(0);
            }
        }
        let mut stream = served.connect();
        let _ = stream.write_all(&bytes);
        if number % 10 == 0 {
            // A client that says no more, and does not go away either.
            hanging.push(stream);
            continue;
        }
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.is_empty() || answer.starts_with(b"HTTP/1."), "{:?}", String::from_utf8_lossy(&answer));
    }
    served.complete(json!({"prompt": "a", "max_tokens": 1}));
    drop(hanging);
    served.rests();
}

#[cfg(unix)]
#[test]
fn signals_stop_it_cleanly() {
    let long = json!({"prompt": "Long", "max_tokens": 60, "stream": true, "ignore_eos": true, "temperature": 0}).to_string();
    // In time: what runs is finished.
    let served = Served::start("--grace 60");
    let want = served.post("/v1/completions", &long).events().len();
    let mut stream = served.send("POST", "/v1/completions", JSON, long.as_bytes());
    stream.read_exact(&mut [0; 1]).unwrap();
    let idle = served.connect();
    served.signal("TERM");
    let rest = Answer::read(stream);
    assert!(rest.body.ends_with("data: [DONE]\n\n"), "{}", rest.body);
    assert!(rest.body.matches("data: {").count() >= want / 4);
    let port = served.port;
    let ended = served.wait();
    assert_eq!((ended.code, ended.out.as_str()), (Some(0), ""), "{}", ended.err);
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
    drop(idle);
    // No time: what runs is cut, and says so.
    let served = Served::start("--grace 0 --slots 1");
    let long = json!({"prompt": "Long", "max_tokens": 500, "n": 8, "stream": true, "ignore_eos": true}).to_string();
    let mut stream = served.send("POST", "/v1/completions", JSON, long.as_bytes());
    stream.read_exact(&mut [0; 300]).unwrap();
    served.signal("INT");
    let mut rest = String::new();
    let _ = stream.read_to_string(&mut rest);
    assert!(rest.contains("the server is stopping") && !rest.contains("[DONE]"), "{rest}");
    let ended = served.wait();
    assert_eq!(ended.code, Some(0), "{}", ended.err);
}
