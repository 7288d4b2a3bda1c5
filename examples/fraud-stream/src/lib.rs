//! Scores card payments as they arrive: a line of JSON in, a line of JSON out, while the caller is still sending.

#[cfg(any(target_family = "wasm", test))]
mod lines;
#[cfg(target_family = "wasm")]
mod stream;

use fnctl_sdk::{Error, Model, Tensor};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The model's inputs; their order is in the README of the example `fraud`.
const FEATURES: usize = 16;

/// One payment. Its id comes back with its score, whatever it is.
#[derive(Deserialize)]
struct Payment {
    #[serde(default)]
    id: Value,
    features: Vec<f32>,
}

/// The answer to one line.
#[derive(Serialize)]
struct Scored {
    #[serde(skip_serializing_if = "Value::is_null")]
    id: Value,
    #[serde(flatten)]
    verdict: Verdict,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Verdict {
    Score { probability: f32, fraud: bool },
    Error { error: String },
}

/// What an instance keeps.
pub struct App {
    model: Model,
    threshold: f32,
}

/// Loads the model once per instance.
#[fnctl_sdk::init]
fn init() -> Result<App, Error> {
    let threshold = match std::env::var("THRESHOLD") {
        Ok(text) => text
            .parse()
            .map_err(|_| Error::internal(format!("THRESHOLD is '{text}', not a number")))?,
        Err(_) => 0.5,
    };
    Ok(App {
        model: Model::load("fraud")?,
        threshold,
    })
}

impl App {
    /// Answers one line by one line. What is wrong with a payment is that payment's answer and nobody else's.
    pub fn answer(&self, line: &[u8]) -> String {
        let (id, score) = match serde_json::from_slice::<Payment>(line) {
            Ok(payment) => (payment.id, self.score(payment.features)),
            Err(error) => (Value::Null, Err(Error::bad_request(error.to_string()))),
        };
        let verdict = match score {
            Ok(probability) => Verdict::Score {
                probability,
                fraud: probability >= self.threshold,
            },
            Err(error) => Verdict::Error {
                error: error.to_string(),
            },
        };
        let mut text = serde_json::to_string(&Scored { id, verdict })
            .unwrap_or_else(|_| "{\"error\":\"the answer is no JSON\"}".to_owned());
        text.push('\n');
        text
    }

    fn score(&self, features: Vec<f32>) -> Result<f32, Error> {
        if features.len() != FEATURES {
            return Err(Error::bad_request(format!(
                "features must be {FEATURES} numbers, not {}",
                features.len()
            )));
        }
        let features = Tensor::new([1, FEATURES], features)?;
        let outputs = self.model.run([("features", features)])?;
        outputs
            .get("fraud_probability")?
            .elements::<f32>()?
            .first()
            .copied()
            .ok_or_else(|| Error::internal("the model gave no probability"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fnctl_sdk::testing;

    #[test]
    fn a_line_is_answered_by_a_line() {
        testing::set_model("fraud", |inputs| {
            assert_eq!(inputs[0].1.dimensions(), [1, 16]);
            Ok(vec![(
                "fraud_probability".into(),
                Tensor::new([1, 1], [0.75f32])?,
            )])
        });
        let app = init().unwrap();
        let line = format!("{{\"id\":7,\"features\":{:?}}}", [0.5; 16]);
        assert_eq!(
            app.answer(line.as_bytes()),
            "{\"id\":7,\"probability\":0.75,\"fraud\":true}\n"
        );
        assert_eq!(
            app.answer(b"{\"id\":\"b\",\"features\":[1]}"),
            "{\"id\":\"b\",\"error\":\"features must be 16 numbers, not 1\"}\n"
        );
        let garbage = app.answer(b"garbage");
        assert!(
            garbage.starts_with("{\"error\":") && garbage.ends_with("}\n"),
            "{garbage}"
        );
    }
}
