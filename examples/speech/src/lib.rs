//! Finds the parts of a recording in which somebody speaks, with Silero VAD: a WAV in, their seconds out.
//!
//! The model hears 32 ms at a time and remembers: what it remembers comes out as a tensor and goes back in with the next
//! frame. That state lives in the handler's own frame, so it ends with the request, and the next request on the same warm
//! instance begins with none.

mod segments;
mod wav;

use fnctl_sdk::{Error, Model, Request, Tensor};
use segments::FRAME;
use serde::Serialize;
use wav::{RATE, Samples};

/// What a WAV file may be called (RFC 2361 says vnd.wave, browsers say wav or wave).
const MEDIA_TYPES: &[&str] = &["audio/wav", "audio/wave", "audio/x-wav", "audio/vnd.wave"];
/// Samples of the frame before that the model hears again (`context_size` of Silero's `OnnxWrapper`).
const CONTEXT: usize = 64;
/// Shape of what the model remembers, for one recording.
const STATE: [usize; 3] = [2, 1, 128];

/// The answer.
#[derive(Serialize)]
pub struct Output {
    /// Length of the recording in seconds.
    duration: f64,
    /// The parts with speech, in order.
    segments: Vec<Seconds>,
}

/// A part of the recording.
#[derive(Serialize)]
pub struct Seconds {
    /// Where it begins, in seconds.
    start: f64,
    /// Where it ends, in seconds.
    end: f64,
}

/// What an instance keeps: the model, and nothing of any recording.
pub struct App {
    model: Model,
}

/// Loads the model once per instance.
#[fnctl_sdk::init]
fn init() -> Result<App, Error> {
    Ok(App {
        model: Model::load("vad")?,
    })
}

/// Listens to one recording.
#[fnctl_sdk::handler]
fn handle(app: &App, request: Request) -> Result<Output, Error> {
    let samples = Samples::read(request.require_body(MEDIA_TYPES)?)?;
    let probabilities = listen(&app.model, &samples)?;
    let seconds = |samples: usize| {
        // To the millisecond; a frame has 32 of them.
        (samples as f64 * 1000.0 / f64::from(RATE)).round() / 1000.0
    };
    let segments = segments::find(&probabilities, samples.len());
    Ok(Output {
        duration: seconds(samples.len()),
        segments: segments
            .iter()
            .map(|segment| Seconds {
                start: seconds(segment.start),
                end: seconds(segment.end),
            })
            .collect(),
    })
}

/// The probability of speech in each frame.
fn listen(model: &Model, samples: &Samples) -> Result<Vec<f32>, Error> {
    let mut state = Tensor::new(STATE, [0.0f32; STATE[0] * STATE[1] * STATE[2]])?;
    let mut heard = vec![0.0; CONTEXT];
    let mut probabilities = Vec::with_capacity(samples.len().div_ceil(FRAME));
    for frame in samples.frames(FRAME) {
        heard.extend(frame);
        let outputs = model.run([
            ("input", Tensor::new([1, CONTEXT + FRAME], &heard)?),
            ("state", state),
            ("sr", Tensor::scalar(i64::from(RATE))),
        ])?;
        let probability = outputs.get("output")?.elements::<f32>()?;
        let [probability] = probability[..] else {
            return Err(Error::internal("the model gave no probability"));
        };
        probabilities.push(probability);
        state = outputs.get("stateN")?.clone();
        heard.drain(..FRAME);
    }
    Ok(probabilities)
}

#[cfg(test)]
mod tests {
    use super::*;
    use fnctl_sdk::testing;
    use std::cell::RefCell;
    use std::rc::Rc;

    /// What the model was given: its input's ends, and the first number of the state.
    type Heard = Rc<RefCell<Vec<(f32, f32, f32)>>>;

    /// A model that calls every frame speech and counts frames in its state.
    fn counting_model() -> Heard {
        let heard = Heard::default();
        let notes = Rc::clone(&heard);
        testing::set_model("vad", move |inputs| {
            let names: Vec<_> = inputs.iter().map(|(name, _)| name.as_str()).collect();
            assert_eq!(names, ["input", "state", "sr"]);
            assert_eq!(inputs[0].1.dimensions(), [1, 576]);
            assert_eq!(inputs[1].1.dimensions(), [2, 1, 128]);
            assert!(inputs[2].1.dimensions().is_empty());
            assert_eq!(inputs[2].1.elements::<i64>()?, [16_000]);
            let (input, mut state) = (
                inputs[0].1.elements::<f32>()?,
                inputs[1].1.elements::<f32>()?,
            );
            notes.borrow_mut().push((input[0], input[575], state[0]));
            state[0] += 1.0;
            Ok(vec![
                ("output".into(), Tensor::new([1, 1], [1.0f32])?),
                ("stateN".into(), Tensor::new([2, 1, 128], state)?),
            ])
        });
        heard
    }

    #[test]
    fn each_frame_hears_the_end_of_the_one_before_and_the_state_is_carried() {
        let heard = counting_model();
        // Sample n is n / 32768: 512 of them, 512 more, and 4000 to be long enough.
        let ramp: Vec<i16> = (0..5024).collect();
        let answer = __fnctl_answer(Request::post(wav::tests::wav(&ramp)));
        assert_eq!(
            String::from_utf8(answer.body).unwrap(),
            "{\"duration\":0.314,\"segments\":[{\"start\":0.0,\"end\":0.314}]}"
        );
        let step = 1.0 / 32_768.0;
        let heard = heard.borrow();
        assert_eq!(heard.len(), 10);
        assert_eq!(heard[0], (0.0, 511.0 * step, 0.0));
        assert_eq!(heard[1], (448.0 * step, 1023.0 * step, 1.0));
        // The last frame is filled up with silence.
        assert_eq!(heard[9], ((9.0 * 512.0 - 64.0) * step, 0.0, 9.0));
    }

    #[test]
    fn a_request_begins_without_memory_of_the_one_before() {
        let heard = counting_model();
        let file = wav::tests::wav(&[1000; 600]);
        let first = __fnctl_answer(Request::post(file.clone()));
        let second = __fnctl_answer(Request::post(file));
        assert_eq!(first, second);
        let heard = heard.borrow();
        assert_eq!(heard[0], heard[2]);
        assert_eq!(heard[1], heard[3]);
    }

    #[test]
    fn what_is_no_recording_is_refused() {
        counting_model();
        let mp3 = Request::post("ID3").with_header("content-type", "audio/mpeg");
        assert_eq!(__fnctl_answer(mp3).status, 415);
        assert_eq!(__fnctl_answer(Request::post("ID3")).status, 415);
        assert_eq!(__fnctl_answer(Request::post("")).status, 400);
        assert_eq!(__fnctl_answer(Request::post("RIFF....WAVE")).status, 422);
    }
}
