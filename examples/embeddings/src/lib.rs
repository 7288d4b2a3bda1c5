//! Turns sentences into vectors whose cosine says how close their meanings are: all-MiniLM-L6-v2, quantised to int8.

mod wordpiece;

use fnctl_sdk::{Error, Model, Tensor};
use serde::{Deserialize, Serialize};
use wordpiece::WordPiece;

/// Tokens that the model was trained with at most.
const MAX_TOKENS: usize = 256;
/// Texts of one request at most.
const MAX_TEXTS: usize = 64;

/// One text or several.
#[derive(Deserialize)]
#[serde(untagged)]
pub enum Input {
    /// `{"text": "..."}`
    One {
        /// The text.
        text: String,
    },
    /// `{"texts": ["...", "..."]}`
    Many {
        /// The texts.
        texts: Vec<String>,
    },
}

/// One unit vector per text.
#[derive(Serialize)]
pub struct Output {
    embeddings: Vec<Vec<f32>>,
    tokens: usize,
}

/// What an instance keeps.
pub struct App {
    model: Model,
    tokenizer: WordPiece,
}

/// Loads the model and the vocabulary once per instance.
#[fnctl_sdk::init]
fn init() -> Result<App, Error> {
    Ok(App {
        model: Model::load("minilm")?,
        tokenizer: WordPiece::new(include_str!("../models/vocab.txt"))?,
    })
}

/// Embeds the texts.
#[fnctl_sdk::handler]
fn handle(app: &App, input: Input) -> Result<Output, Error> {
    let texts = match input {
        Input::One { text } => vec![text],
        Input::Many { texts } => texts,
    };
    if texts.is_empty() || texts.len() > MAX_TEXTS {
        return Err(Error::bad_request(format!("send 1 to {MAX_TEXTS} texts")));
    }
    let ids: Vec<_> = texts
        .iter()
        .map(|text| app.tokenizer.encode(text, MAX_TOKENS))
        .collect();
    let width = ids.iter().map(Vec::len).max().unwrap_or(0);
    let shape = [ids.len(), width];
    let padded = |value: fn(i64) -> i64| -> Vec<i64> {
        ids.iter()
            .flat_map(|ids| {
                ids.iter()
                    .map(move |id| value(*id))
                    .chain(std::iter::repeat_n(0, width - ids.len()))
            })
            .collect()
    };
    let outputs = app.model.run([
        ("input_ids", Tensor::new(shape, padded(|id| id))?),
        ("attention_mask", Tensor::new(shape, padded(|_| 1))?),
        ("token_type_ids", Tensor::new(shape, padded(|_| 0))?),
    ])?;
    let hidden = outputs.get("last_hidden_state")?;
    let size = hidden.dimensions().last().copied().unwrap_or(0);
    let states = hidden.elements::<f32>()?;
    let embeddings = ids
        .iter()
        .zip(states.chunks_exact((width * size).max(1)))
        .map(|(ids, states)| unit(mean(states, size, ids.len())))
        .collect();
    Ok(Output {
        embeddings,
        tokens: ids.iter().map(Vec::len).sum(),
    })
}

/// The mean of the first `count` rows of `size` numbers.
fn mean(states: &[f32], size: usize, count: usize) -> Vec<f32> {
    let mut sum = vec![0.0; size];
    for row in states.chunks_exact(size.max(1)).take(count) {
        for (total, value) in sum.iter_mut().zip(row) {
            *total += value;
        }
    }
    sum.iter()
        .map(|total| total / count.max(1) as f32)
        .collect()
}

/// The vector of length one in the same direction.
fn unit(mut vector: Vec<f32>) -> Vec<f32> {
    let length = vector
        .iter()
        .map(|value| value * value)
        .sum::<f32>()
        .sqrt()
        .max(1e-12);
    vector.iter_mut().for_each(|value| *value /= length);
    vector
}

#[cfg(test)]
mod tests {
    use super::*;
    use fnctl_sdk::{Request, testing};

    #[test]
    fn the_mean_is_over_the_tokens_and_not_the_padding() {
        testing::set_model("minilm", |inputs| {
            let mask = inputs
                .iter()
                .find(|(name, _)| name == "attention_mask")
                .unwrap()
                .1
                .elements::<i64>()?;
            let [texts, width] = inputs[0].1.dimensions()[..] else {
                panic!("two dimensions")
            };
            // Token states [1, 0] where there is a token and [0, 9] where there is padding.
            let states: Vec<f32> = mask
                .iter()
                .flat_map(|one| if *one == 1 { [1.0, 0.0] } else { [0.0, 9.0] })
                .collect();
            Ok(vec![(
                "last_hidden_state".into(),
                Tensor::new([texts, width, 2], states)?,
            )])
        });
        let answer = __fnctl_answer(Request::post("{\"texts\":[\"one\",\"one two three\"]}"));
        assert_eq!(
            String::from_utf8(answer.body).unwrap(),
            "{\"embeddings\":[[1.0,0.0],[1.0,0.0]],\"tokens\":8}"
        );
    }
}
