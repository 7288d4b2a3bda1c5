//! Tells what kind of file the request body is, with Google's Magika model.
//!
//! The model looks at the first and the last 1024 bytes after white space, as integers, and gives a score per label
//! (github.com/google/magika, model standard_v3_3).

use fnctl_sdk::{Error, Model, Request, Tensor};
use serde::{Deserialize, Serialize};

/// How many bytes at either end are looked at, before white space is dropped.
const BLOCK: usize = 4096;
/// How many of them the model sees.
const SEEN: usize = 1024;
/// What stands where the file has no byte.
const PADDING: i32 = 256;

#[derive(Deserialize)]
struct ModelConfig {
    target_labels_space: Vec<String>,
}

/// The answer.
#[derive(Serialize)]
pub struct Output {
    label: String,
    score: f32,
}

/// What an instance keeps.
pub struct App {
    model: Model,
    labels: Vec<String>,
}

/// Loads the model and its labels once per instance.
#[fnctl_sdk::init]
fn init() -> Result<App, Error> {
    let config: ModelConfig =
        serde_json::from_str(include_str!("../models/magika_config.min.json"))
            .map_err(|error| Error::internal(format!("the model's configuration: {error}")))?;
    fnctl_sdk::logging::init(log::LevelFilter::Info);
    log::info!("{} labels", config.target_labels_space.len());
    Ok(App {
        model: Model::load("magika")?,
        labels: config.target_labels_space,
    })
}

/// The model's input for a file.
fn features(file: &[u8]) -> Vec<i32> {
    let begin = file[..file.len().min(BLOCK)].trim_ascii_start();
    let end = file[file.len().saturating_sub(BLOCK)..].trim_ascii_end();
    let begin = &begin[..begin.len().min(SEEN)];
    let end = &end[end.len().saturating_sub(SEEN)..];
    let mut features = vec![PADDING; 2 * SEEN];
    for (slot, byte) in features.iter_mut().zip(begin) {
        *slot = i32::from(*byte);
    }
    let start = 2 * SEEN - end.len();
    for (slot, byte) in features[start..].iter_mut().zip(end) {
        *slot = i32::from(*byte);
    }
    features
}

/// Labels one file.
#[fnctl_sdk::handler]
fn handle(app: &App, request: Request) -> Result<Output, Error> {
    if request.body.is_empty() {
        return Err(Error::bad_request("send the file as the request body"));
    }
    let bytes = Tensor::new([1, 2 * SEEN], features(&request.body))?;
    let scores = app.model.run([("bytes", bytes)])?.first::<f32>()?;
    let best = scores
        .iter()
        .copied()
        .enumerate()
        .max_by(|a, b| a.1.total_cmp(&b.1));
    let (index, score) = best.ok_or_else(|| Error::internal("the model gave no scores"))?;
    let label = app
        .labels
        .get(index)
        .ok_or_else(|| Error::internal("the model and its labels do not fit"))?;
    Ok(Output {
        label: label.clone(),
        score,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_file_is_padded_in_the_middle() {
        let features = features(b"  ab \n");
        assert_eq!(features[..4], [97, 98, 32, 10]);
        assert_eq!(features[4], PADDING);
        assert_eq!(features[2044..], [32, 32, 97, 98]);
        assert_eq!(features.len(), 2048);
    }

    #[test]
    fn of_a_long_file_both_ends_are_seen() {
        let file: Vec<u8> = (0..10_000u32).map(|i| (i % 200) as u8 + 40).collect();
        let features = features(&file);
        assert!(!features.contains(&PADDING));
        assert_eq!(features[0], i32::from(file[0]));
        assert_eq!(features[2047], i32::from(file[9_999]));
    }
}
