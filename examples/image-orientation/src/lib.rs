//! Tells whether a picture of a line of text stands on its head: a PNG in, 0 or 180 degrees and the score out.
//!
//! The PNG is decoded in the guest ([`picture`]), so whatever a hostile file can do it does inside the sandbox; then it is
//! resized and normalised as the model was trained ([`prepare`]).

mod picture;
mod prepare;

use fnctl_sdk::{Error, Model, Request, Tensor};
use picture::Picture;
use serde::Serialize;

/// The model's classes, in its order (`label_list` of RapidOCR's configuration).
const DEGREES: [u16; 2] = [0, 180];
/// From which score on RapidOCR turns an image (`cls_thresh`).
const ROTATE_ABOVE: f32 = 0.9;

/// The answer.
#[derive(Serialize)]
pub struct Output {
    /// By how much the text is turned: 0 or 180.
    degrees: u16,
    /// How sure the model is, 0.5 to 1.
    score: f32,
    /// Whether it is sure enough to turn the image back.
    rotate: bool,
}

/// What an instance keeps.
pub struct App {
    model: Model,
}

/// Loads the model once per instance.
#[fnctl_sdk::init]
fn init() -> Result<App, Error> {
    Ok(App {
        model: Model::load("orientation")?,
    })
}

/// Looks at one picture.
#[fnctl_sdk::handler]
fn handle(app: &App, request: Request) -> Result<Output, Error> {
    let picture = Picture::decode(request.require_body(&["image/png"])?)?;
    let [colours, height, width] = prepare::SHAPE;
    let image = Tensor::new([1, colours, height, width], prepare::prepare(&picture))?;
    let scores = app.model.run([("x", image)])?.first::<f32>()?;
    let best = DEGREES
        .into_iter()
        .zip(scores)
        .max_by(|a, b| a.1.total_cmp(&b.1));
    let (degrees, score) = best.ok_or_else(|| Error::internal("the model gave no scores"))?;
    Ok(Output {
        degrees,
        score,
        rotate: degrees == 180 && score > ROTATE_ABOVE,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use fnctl_sdk::testing;
    use std::cell::Cell;

    // An instance keeps its model, so the model looks up what it is to say.
    thread_local!(static SCORES: Cell<[f32; 2]> = const { Cell::new([0.0; 2]) });

    /// Answers a request with a model that gives these scores.
    fn answer(scores: [f32; 2], request: Request) -> (u16, String) {
        SCORES.set(scores);
        testing::set_model("orientation", |inputs| {
            assert_eq!(inputs[0].0, "x");
            assert_eq!(inputs[0].1.dimensions(), [1, 3, 48, 192]);
            Ok(vec![("scores".into(), Tensor::new([1, 2], SCORES.get())?)])
        });
        let answer = __fnctl_answer(request);
        (answer.status, String::from_utf8(answer.body).unwrap())
    }

    fn sample() -> Request {
        Request::post(*include_bytes!("../samples/ocr_line.png"))
    }

    #[test]
    fn an_image_is_turned_only_if_the_model_is_sure() {
        for (scores, wanted) in [
            (
                [0.75, 0.25],
                "{\"degrees\":0,\"score\":0.75,\"rotate\":false}",
            ),
            (
                [0.25, 0.75],
                "{\"degrees\":180,\"score\":0.75,\"rotate\":false}",
            ),
            (
                [0.0, 1.0],
                "{\"degrees\":180,\"score\":1.0,\"rotate\":true}",
            ),
        ] {
            assert_eq!(answer(scores, sample()), (200, wanted.to_owned()));
        }
    }

    #[test]
    fn what_is_no_png_is_refused() {
        let labelled = sample().with_header("content-type", "image/webp");
        let (status, text) = answer([1.0, 0.0], labelled);
        assert_eq!((status, text.contains("send image/png")), (415, true));
        let (status, _) = answer([1.0, 0.0], Request::post("GIF89a"));
        assert_eq!(status, 415);
        let (status, _) = answer([1.0, 0.0], Request::post(""));
        assert_eq!(status, 400);
    }
}
