//! Tells whether English text is positive or negative: `{"text": ...}` or `{"texts": [...]}` in, label and score out.
//!
//! The model knows no strings: the guest makes numbers of them ([`features`]).

mod features;

use fnctl_sdk::{Error, Model, Tensor};
use serde::{Deserialize, Serialize};

/// Texts of one request at most: 2 MiB of numbers for the model.
const MAX_TEXTS: usize = 64;
/// From which probability on a text is positive.
const THRESHOLD: f32 = 0.5;

/// One text or several.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    text: Option<String>,
    texts: Option<Vec<String>>,
}

/// One verdict for `text`, a list for `texts`.
#[derive(Serialize)]
#[serde(untagged)]
pub enum Output {
    /// For `{"text": ...}`.
    One(Verdict),
    /// For `{"texts": [...]}`, in their order.
    Many {
        /// The verdicts.
        results: Vec<Verdict>,
    },
}

/// What the model makes of one text.
#[derive(Serialize)]
pub struct Verdict {
    label: Label,
    /// The probability of the label, 0.5 to 1; 0 if it is unknown.
    score: f32,
}

/// How a text sounds.
#[derive(Serialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "lowercase")]
pub enum Label {
    /// It sounds pleased.
    Positive,
    /// It sounds displeased.
    Negative,
    /// It has no word that the model can read.
    Unknown,
}

/// What an instance keeps.
pub struct App {
    model: Model,
}

/// Loads the model once per instance.
#[fnctl_sdk::init]
fn init() -> Result<App, Error> {
    Ok(App {
        model: Model::load("sentiment")?,
    })
}

/// Judges the texts, all in one run of the model.
#[fnctl_sdk::handler]
fn handle(app: &App, input: Input) -> Result<Output, Error> {
    match (input.text, input.texts) {
        (Some(text), None) => {
            let mut results = judge(app, &[text])?;
            let verdict = results.pop();
            verdict
                .map(Output::One)
                .ok_or_else(|| Error::internal("the model gave no probability"))
        }
        (None, Some(texts)) => Ok(Output::Many {
            results: judge(app, &texts)?,
        }),
        _ => Err(Error::bad_request(
            "send either {\"text\": \"...\"} or {\"texts\": [\"...\", \"...\"]}",
        )),
    }
}

fn judge(app: &App, texts: &[String]) -> Result<Vec<Verdict>, Error> {
    if texts.is_empty() {
        return Err(Error::bad_request("texts is empty; send at least one"));
    }
    if texts.len() > MAX_TEXTS {
        return Err(Error::too_large(format!(
            "{} texts are more than {MAX_TEXTS}; send them in several requests",
            texts.len()
        )));
    }
    let mut rows = Vec::with_capacity(texts.len() * features::PLACES);
    let words: Vec<usize> = texts
        .iter()
        .map(|text| features::append(text, &mut rows))
        .collect();
    let rows = Tensor::new([texts.len(), features::PLACES], rows)?;
    let outputs = app.model.run([("hashed_ngrams", rows)])?;
    let probabilities = outputs.get("positive_probability")?.elements::<f32>()?;
    if probabilities.len() != texts.len() {
        return Err(Error::internal(
            "the model did not give one probability per text",
        ));
    }
    let verdicts = words
        .iter()
        .zip(probabilities)
        .map(|(words, positive)| verdict(*words, positive));
    Ok(verdicts.collect())
}

/// A verdict for a text of so many words that is positive with this probability.
fn verdict(words: usize, positive: f32) -> Verdict {
    if words == 0 {
        // The model would answer with its bias, which says nothing of the text.
        return Verdict {
            label: Label::Unknown,
            score: 0.0,
        };
    }
    if positive >= THRESHOLD {
        Verdict {
            label: Label::Positive,
            score: positive,
        }
    } else {
        Verdict {
            label: Label::Negative,
            score: 1.0 - positive,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fnctl_sdk::{Request, testing};

    /// Answers with a model that calls every odd text positive.
    fn answer(body: &str) -> (u16, String) {
        testing::set_model("sentiment", |inputs| {
            let (name, tensor) = &inputs[0];
            assert_eq!((name.as_str(), inputs.len()), ("hashed_ngrams", 1));
            let [texts, width] = tensor.dimensions()[..] else {
                panic!("two dimensions")
            };
            assert_eq!(width, 8192);
            let probabilities: Vec<f32> = (0..texts)
                .map(|i| if i % 2 == 0 { 0.25 } else { 0.75 })
                .collect();
            Ok(vec![(
                "positive_probability".into(),
                Tensor::new([texts, 1], probabilities)?,
            )])
        });
        let answer = __fnctl_answer(Request::post(body));
        (answer.status, String::from_utf8(answer.body).unwrap())
    }

    #[test]
    fn one_text_has_one_verdict() {
        assert_eq!(
            answer("{\"text\":\"dreadful\"}"),
            (200, "{\"label\":\"negative\",\"score\":0.75}".to_owned())
        );
    }

    #[test]
    fn several_texts_have_theirs_in_order() {
        assert_eq!(
            answer("{\"texts\":[\"bad\",\"good\",\"\u{597d}\"]}"),
            (
                200,
                "{\"results\":[{\"label\":\"negative\",\"score\":0.75},{\"label\":\"positive\",\"score\":0.75},{\"label\":\"unknown\",\"score\":0.0}]}"
                    .to_owned()
            )
        );
    }

    #[test]
    fn what_cannot_be_judged_is_refused_with_the_way_out() {
        for (body, status, says) in [
            ("", 400, "JSON"),
            ("{}", 400, "either"),
            ("{\"text\":\"a\",\"texts\":[\"b\"]}", 400, "either"),
            ("{\"texts\":[]}", 400, "at least one"),
            ("{\"txt\":\"a\"}", 400, "unknown field `txt`"),
            ("{\"text\":7}", 400, "a string"),
        ] {
            let (got, text) = answer(body);
            assert_eq!(got, status, "{body}: {text}");
            assert!(text.contains(says), "{body}: {text}");
        }
        let many = format!("{{\"texts\":[{}\"a\"]}}", "\"a\",".repeat(64));
        assert_eq!(answer(&many).0, 413);
    }
}
