//! From a probability per frame to the parts in which somebody speaks.
//!
//! The rules and the numbers are those of `get_speech_timestamps` of Silero VAD 6.2.3 with its defaults
//! (`silero_vad/utils_vad.py` of the PyPI package `silero-vad`; MIT, Copyright (c) 2020-present Silero Team, see
//! `models/LICENSE`). Its limit on the length of a part (`max_speech_duration_s`) is infinite by default, so that half of it
//! is not here.

use crate::wav::RATE;

/// New samples in each frame: 32 ms (`window_size_samples`).
pub const FRAME: usize = 512;
/// From which probability on a frame is speech (`threshold`).
const SPEECH: f32 = 0.5;
/// Below which probability speech may end (`neg_threshold`, by default `threshold - 0.15`).
const SILENCE: f32 = 0.35;
/// Shorter parts are thrown out (`min_speech_duration_ms`, 250).
const MIN_SPEECH: usize = samples(250);
/// Speech ends only where it is silent for so long (`min_silence_duration_ms`, 100).
const MIN_SILENCE: usize = samples(100);
/// Parts are made longer by so much at either end (`speech_pad_ms`, 30).
const PADDING: usize = samples(30);

const fn samples(milliseconds: usize) -> usize {
    RATE as usize * milliseconds / 1000
}

/// A part of the recording, in samples from its beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// The first sample.
    pub start: usize,
    /// The first one that does not belong to it.
    pub end: usize,
}

/// The parts of a recording of `length` samples that are speech, in order.
pub fn find(probabilities: &[f32], length: usize) -> Vec<Segment> {
    let mut segments = spoken(probabilities, length);
    pad(&mut segments, length);
    segments
}

/// Speech begins with the first frame over the one threshold and ends where the silence begins that then lasts.
fn spoken(probabilities: &[f32], length: usize) -> Vec<Segment> {
    let mut segments = Vec::new();
    let mut start: Option<usize> = None;
    let mut silent_since: Option<usize> = None;
    for (frame, probability) in probabilities.iter().enumerate() {
        let now = frame * FRAME;
        if *probability >= SPEECH {
            silent_since = None;
            start = start.or(Some(now));
        } else if *probability < SILENCE
            && let Some(begun) = start
        {
            // Between the two thresholds nothing changes.
            let end = *silent_since.get_or_insert(now);
            if now - end >= MIN_SILENCE {
                if end - begun > MIN_SPEECH {
                    segments.push(Segment { start: begun, end });
                }
                (start, silent_since) = (None, None);
            }
        }
    }
    if let Some(start) = start
        && length.saturating_sub(start) > MIN_SPEECH
    {
        segments.push(Segment { start, end: length });
    }
    segments
}

/// Makes each part longer at both ends; neighbours that would overlap share the silence between them.
fn pad(segments: &mut [Segment], length: usize) {
    if let Some(first) = segments.first_mut() {
        first.start = first.start.saturating_sub(PADDING);
    }
    for at in 0..segments.len() {
        let Some([this, next]) = segments.get_mut(at..at + 2) else {
            continue;
        };
        let half = ((next.start - this.end) / 2).min(PADDING);
        this.end += half;
        next.start -= half;
    }
    if let Some(last) = segments.last_mut() {
        last.end = (last.end + PADDING).min(length);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Segments in frames (before padding: see `padded`), from runs of (frames, probability).
    fn find_in(runs: &[(usize, f32)]) -> Vec<Segment> {
        let probabilities: Vec<f32> = runs
            .iter()
            .flat_map(|(frames, probability)| std::iter::repeat_n(*probability, *frames))
            .collect();
        find(&probabilities, probabilities.len() * FRAME)
    }

    fn padded(start: usize, end: usize) -> Segment {
        Segment {
            start: start * FRAME - PADDING,
            end: end * FRAME + PADDING,
        }
    }

    #[test]
    fn speech_is_from_one_threshold_to_the_other() {
        let runs = [(10, 0.1), (20, 0.9), (5, 0.4), (10, 0.1)];
        // 0.4 ends nothing: the silence begins behind it.
        assert_eq!(find_in(&runs), [padded(10, 35)]);
    }

    #[test]
    fn a_breath_does_not_end_speech_and_a_pause_does() {
        // Four frames of silence are 96 ms from the first to the last, five are 128.
        let breath = [(5, 0.0), (10, 1.0), (4, 0.0), (10, 1.0), (9, 0.0)];
        assert_eq!(find_in(&breath), [padded(5, 29)]);
        let pause = [(5, 0.0), (10, 1.0), (5, 0.0), (10, 1.0), (9, 0.0)];
        assert_eq!(find_in(&pause), [padded(5, 15), padded(20, 30)]);
    }

    #[test]
    fn a_click_is_no_speech() {
        // Seven frames are 224 ms, eight are 256.
        assert_eq!(find_in(&[(5, 0.0), (7, 1.0), (9, 0.0)]), []);
        assert_eq!(find_in(&[(5, 0.0), (8, 1.0), (9, 0.0)]), [padded(5, 13)]);
    }

    #[test]
    fn speech_at_the_ends_stays_inside_the_recording() {
        let whole = Segment {
            start: 0,
            end: 20 * FRAME,
        };
        assert_eq!(find_in(&[(20, 1.0)]), [whole]);
        assert_eq!(find_in(&[(20, 0.0)]), []);
        assert_eq!(find(&[], 0), []);
        // The last frame of a recording is filled up; the filling is not part of it.
        let probabilities = vec![1.0; 20];
        assert_eq!(find(&probabilities, 10_001)[0].end, 10_001);
    }

    #[test]
    fn the_gap_between_neighbours_never_turns_negative() {
        // 128 ms of silence leave more than twice the padding; padding and segments keep their order.
        let runs: Vec<_> = (0..20).flat_map(|_| [(9, 1.0), (5, 0.0)]).collect();
        let segments = find_in(&runs);
        assert_eq!(segments.len(), 20);
        assert!(segments.windows(2).all(|pair| pair[0].end <= pair[1].start));
    }
}
