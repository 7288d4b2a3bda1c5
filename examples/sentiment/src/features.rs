//! Text to the numbers that the model was trained on: hashed words and pairs of words.
//!
//! The model and this file must agree to the letter, so the rules stand here in full. Words are the runs of `a` to `z` and
//! `'` in the lower-cased text. Each word, and each two neighbours joined by one space, is hashed (FNV-1a, 32 bits) to one
//! of 8192 places and counted there. The counts are divided by their Euclidean length.

/// Places that words are hashed to; the width of the model's input.
pub const PLACES: usize = 8192;

/// The model's input for one text, appended to `row`: [`PLACES`] numbers, all zero if the text has no word.
///
/// Returns how many words the text has.
pub fn append(text: &str, row: &mut Vec<f32>) -> usize {
    let text = text.to_lowercase();
    let start = row.len();
    row.resize(start + PLACES, 0.0);
    let counts = &mut row[start..];
    let mut words = 0;
    let mut before = None;
    for word in text
        .split(|c: char| !(c.is_ascii_lowercase() || c == '\''))
        .filter(|word| !word.is_empty())
    {
        counts[place(hash(FNV_OFFSET, word))] += 1.0;
        if let Some(before) = before {
            counts[place(hash(hash(hash(FNV_OFFSET, before), " "), word))] += 1.0;
        }
        before = Some(word);
        words += 1;
    }
    let length = counts.iter().map(|count| count * count).sum::<f32>().sqrt();
    if length > 0.0 {
        counts.iter_mut().for_each(|count| *count /= length);
    }
    words
}

fn place(hash: u32) -> usize {
    hash as usize % PLACES
}

/// FNV-1a's start value and its step (draft-eastlake-fnv-21, The FNV Non-Cryptographic Hash Algorithm, section 2).
const FNV_OFFSET: u32 = 2_166_136_261;
const FNV_PRIME: u32 = 16_777_619;

/// Goes on hashing from `state`, so that a pair of words needs no string of its own.
fn hash(state: u32, text: &str) -> u32 {
    text.bytes().fold(state, |state, byte| {
        (state ^ u32::from(byte)).wrapping_mul(FNV_PRIME)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn features(text: &str) -> (usize, Vec<(usize, f32)>) {
        let mut row = Vec::new();
        let words = append(text, &mut row);
        assert_eq!(row.len(), PLACES);
        let set = row
            .into_iter()
            .enumerate()
            .filter(|(_, value)| *value != 0.0);
        (words, set.collect())
    }

    #[test]
    fn the_hash_is_fnv_1a() {
        // From the test vectors of draft-eastlake-fnv-21.
        assert_eq!(hash(FNV_OFFSET, ""), 0x811c_9dc5);
        assert_eq!(hash(FNV_OFFSET, "a"), 0xe40c_292c);
        assert_eq!(hash(FNV_OFFSET, "foobar"), 0xbf9c_f968);
        assert_eq!(
            hash(hash(FNV_OFFSET, "foo"), "bar"),
            hash(FNV_OFFSET, "foobar")
        );
    }

    #[test]
    fn words_and_neighbours_are_counted_and_the_row_has_length_one() {
        let (words, set) = features("Don't -- PANIC: don't");
        assert_eq!(words, 3);
        // don't twice, panic, "don't panic", "panic don't": 1 / sqrt(4 + 1 + 1 + 1).
        let one = 1.0 / 7.0f32.sqrt();
        let dont = place(hash(FNV_OFFSET, "don't"));
        assert_eq!(set.len(), 4);
        for (place, value) in set {
            let wanted = if place == dont { 2.0 * one } else { one };
            assert!((value - wanted).abs() < 1e-6, "{place} {value}");
        }
    }

    #[test]
    fn text_without_a_word_has_no_feature() {
        assert_eq!(features("1234 \u{4f60}\u{597d} !?"), (0, vec![]));
    }

    #[test]
    fn rows_stand_one_behind_the_other() {
        let (mut both, mut second) = (Vec::new(), Vec::new());
        append("one", &mut both);
        append("two", &mut both);
        append("two", &mut second);
        assert_eq!(both[PLACES..], second);
    }
}
