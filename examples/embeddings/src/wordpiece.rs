//! BERT's tokenizer for uncased models: split at white space and punctuation, lower-case, strip accents, then take the
//! longest known pieces of each word (Devlin et al. 2019; the rules of the reference implementation's `BasicTokenizer`
//! and `WordpieceTokenizer`).

use fnctl_sdk::Error;
use std::collections::HashMap;
use unicode_normalization::UnicodeNormalization;
use unicode_normalization::char::is_combining_mark;

/// Words longer than this are unknown.
const MAX_WORD: usize = 100;

/// A vocabulary with its special tokens.
pub(crate) struct WordPiece {
    ids: HashMap<&'static str, i64>,
    start: i64,
    end: i64,
    unknown: i64,
}

impl WordPiece {
    /// A vocabulary of one token a line; a token's id is its line's number.
    pub(crate) fn new(vocabulary: &'static str) -> Result<Self, Error> {
        let ids: HashMap<_, _> = vocabulary.lines().zip(0i64..).collect();
        let special = |token: &str| {
            ids.get(token)
                .copied()
                .ok_or_else(|| Error::internal(format!("the vocabulary has no {token}")))
        };
        Ok(Self {
            start: special("[CLS]")?,
            end: special("[SEP]")?,
            unknown: special("[UNK]")?,
            ids,
        })
    }

    /// The ids of a text between `[CLS]` and `[SEP]`, at most `limit` in all.
    pub(crate) fn encode(&self, text: &str, limit: usize) -> Vec<i64> {
        let mut ids = vec![self.start];
        for word in words(text) {
            if ids.len() >= limit {
                break;
            }
            self.pieces(&word, &mut ids);
        }
        ids.truncate(limit.saturating_sub(1).max(1));
        ids.push(self.end);
        ids
    }

    /// Appends the ids of a word's longest known pieces, or the unknown token.
    fn pieces(&self, word: &str, ids: &mut Vec<i64>) {
        let known = ids.len();
        let mut rest = word;
        let mut candidate = String::new();
        if word.chars().count() > MAX_WORD {
            ids.push(self.unknown);
            return;
        }
        while !rest.is_empty() {
            let prefix = if rest.len() == word.len() { "" } else { "##" };
            let ends = rest
                .char_indices()
                .map(|(start, letter)| start + letter.len_utf8())
                .rev();
            let found = ends.into_iter().find_map(|end| {
                candidate.clear();
                candidate.push_str(prefix);
                candidate.push_str(&rest[..end]);
                self.ids.get(candidate.as_str()).map(|id| (*id, end))
            });
            match found {
                Some((id, end)) => {
                    ids.push(id);
                    rest = &rest[end..];
                }
                None => {
                    ids.truncate(known);
                    ids.push(self.unknown);
                    return;
                }
            }
        }
    }
}

/// The words of a text, lower-cased and without accents; punctuation and Chinese characters stand alone.
fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    for letter in text
        .chars()
        .flat_map(char::to_lowercase)
        .nfd()
        .filter(|letter| !is_combining_mark(*letter))
    {
        let alone = is_punctuation(letter) || is_chinese(letter);
        let dropped = letter == '\u{fffd}' || (letter.is_control() && !letter.is_whitespace());
        if letter.is_whitespace() || alone {
            if !word.is_empty() {
                words.push(std::mem::take(&mut word));
            }
            if alone {
                words.push(letter.to_string());
            }
        } else if !dropped {
            word.push(letter);
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

fn is_punctuation(letter: char) -> bool {
    letter.is_ascii_punctuation()
        || matches!(
            letter,
            '\u{a1}' | '\u{a7}' | '\u{ab}' | '\u{b6}' | '\u{b7}' | '\u{bb}' | '\u{bf}'
        )
        || ('\u{2010}'..='\u{2027}').contains(&letter)
        || ('\u{2030}'..='\u{205e}').contains(&letter)
        || ('\u{3001}'..='\u{3003}').contains(&letter)
        || ('\u{3008}'..='\u{3011}').contains(&letter)
        || ('\u{ff01}'..='\u{ff0f}').contains(&letter)
        || matches!(letter, '\u{ff1a}' | '\u{ff1b}' | '\u{ff1f}')
}

fn is_chinese(letter: char) -> bool {
    matches!(u32::from(letter), 0x4e00..=0x9fff | 0x3400..=0x4dbf | 0x20000..=0x2a6df | 0x2a700..=0x2b81f | 0xf900..=0xfaff | 0x2f800..=0x2fa1f)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokenizer() -> WordPiece {
        WordPiece::new(include_str!("../models/vocab.txt")).unwrap()
    }

    #[test]
    fn a_sentence_has_the_ids_of_the_reference_tokenizer() {
        assert_eq!(
            tokenizer().encode("The weather is lovely today.", 256),
            [101, 1996, 4633, 2003, 8403, 2651, 1012, 102]
        );
    }

    #[test]
    fn accents_case_and_unknown_words() {
        let tokenizer = tokenizer();
        assert_eq!(tokenizer.encode("Café", 256), tokenizer.encode("cafe", 256));
        assert_eq!(
            tokenizer.encode("\u{1F980}\u{1F980}", 256),
            [101, tokenizer.unknown, 102]
        );
        assert_eq!(tokenizer.encode("", 256), [101, 102]);
        assert!(
            tokenizer.encode("embeddings", 256).len() > 3,
            "a rare word has several pieces"
        );
    }

    #[test]
    fn a_long_text_is_cut_and_still_ends_as_it_must() {
        let ids = tokenizer().encode(&"word ".repeat(1000), 256);
        assert_eq!(ids.len(), 256);
        assert_eq!(ids[255], 102);
    }
}
