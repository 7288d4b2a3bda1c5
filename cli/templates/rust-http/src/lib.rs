//! Greets whoever asks, and counts the words of a text.

use fnctl_sdk::{Error, Request, Response};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A text to be counted.
#[derive(Deserialize)]
struct Text {
    text: String,
}

/// What was counted.
#[derive(Serialize)]
struct Counted {
    words: usize,
    most_frequent: Option<String>,
}

/// Answers every request: the path is what follows the function's name.
#[fnctl_sdk::handler]
fn handle(request: Request) -> Result<Response, Error> {
    let path = request.path.split('?').next().unwrap_or("/");
    match (request.method.as_str(), path) {
        ("GET", "/") => greet("world"),
        ("GET", path) if path.starts_with("/hello/") => greet(path.trim_start_matches("/hello/")),
        ("POST", "/") => Response::json(&count(&request.json::<Text>()?.text)),
        (method, path) => Err(Error::not_found(format!("there is no {method} {path}"))),
    }
}

fn greet(name: &str) -> Result<Response, Error> {
    // Set in function.toml; what is printed here shows in the function's log.
    let greeting = std::env::var("GREETING").unwrap_or_else(|_| "Hello".to_owned());
    println!("greeting {name}");
    Ok(Response::ok(format!("{greeting}, {name}!\n")).with_header("content-type", "text/plain"))
}

fn count(text: &str) -> Counted {
    let mut seen = BTreeMap::<String, usize>::new();
    for word in text.split_whitespace() {
        *seen.entry(word.to_lowercase()).or_default() += 1;
    }
    Counted {
        words: seen.values().sum(),
        most_frequent: seen
            .into_iter()
            .max_by_key(|(_, count)| *count)
            .map(|(word, _)| word),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(method: &str, path: &str, body: &str) -> (u16, String) {
        let answer = __fnctl_answer(Request {
            method: method.into(),
            path: path.into(),
            ..Request::post(body)
        });
        (answer.status, String::from_utf8(answer.body).unwrap())
    }

    #[test]
    fn greets_by_name() {
        assert_eq!(
            answer("GET", "/hello/Ada", ""),
            (200, "Hello, Ada!\n".into())
        );
    }

    #[test]
    fn counts_words() {
        let expected = "{\"words\":6,\"most_frequent\":\"to\"}";
        let sent = "{\"text\":\"to be or not to be\"}";
        assert_eq!(answer("POST", "/", sent), (200, expected.into()));
    }

    #[test]
    fn what_it_cannot_answer_is_the_callers_mistake() {
        assert_eq!(answer("POST", "/", "no json").0, 400);
        assert_eq!(answer("DELETE", "/", "").0, 404);
    }
}
