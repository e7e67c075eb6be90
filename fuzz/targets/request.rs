//! Bodies of requests to the server.

use bitsmith_serve::fuzzing;

/// A body, for both routes.
pub fn run(data: &[u8]) {
    fuzzing::requests(data);
}

/// Requests with all fields.
pub fn seeds() -> Vec<Vec<u8>> {
    [
        r#"{"model":"m","prompt":"The","max_tokens":5,"temperature":0.5,"top_p":0.9,"top_k":5,"n":2,"stop":["a","b"],"logprobs":3,"echo":true,"seed":7,"stream":true,"stream_options":{"include_usage":true},"logit_bias":{"5":-100},"presence_penalty":0.1,"frequency_penalty":0.2}"#,
        r#"{"prompt":[[1,2],[3]],"max_tokens":0,"best_of":1,"suffix":"","user":"x","min_tokens":0,"ignore_eos":false}"#,
        r#"{"messages":[{"role":"system","content":"x"},{"role":"user","content":[{"type":"text","text":"Hi"}]}],"max_completion_tokens":5,"logprobs":true,"top_logprobs":2,"tools":[],"response_format":{"type":"text"}}"#,
    ]
    .map(|s| s.as_bytes().to_vec())
    .to_vec()
}
