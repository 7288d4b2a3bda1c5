//! What a misspelt name may have meant.

use crate::client::{Client, Refusal};
use fnctl_core::ErrorKind;

/// The name nearest to what was written, if one is near enough to be a slip.
pub(crate) fn nearest<'a>(
    written: &str,
    names: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    // Long inputs are no slips, and comparing costs the product of the lengths.
    let length = written.chars().count();
    if length == 0 || length > 128 {
        return None;
    }
    let most = (length / 3).max(1);
    names
        .into_iter()
        .filter(|name| name.len() <= 128 && *name != written)
        .map(|name| (strsim::damerau_levenshtein(written, name), name))
        .filter(|(distance, name)| *distance <= most && *distance < name.chars().count())
        .min()
        .map(|(_, name)| name)
}

/// What a caller may have meant whose function, version or alias is not there. Asks the platform once or twice, for
/// two seconds at most each; what it does not answer is not suggested.
pub(crate) fn for_refusal(client: &Client, refusal: &Refusal) -> Option<String> {
    let subject = refusal
        .subject
        .as_ref()
        .filter(|_| refusal.kind == Some(ErrorKind::NotFound))?;
    let functions = client.function_names()?;
    if !functions.contains(&subject.function) {
        return match nearest(&subject.function, functions.iter().map(String::as_str)) {
            Some(near) => Some(format!("did you mean '{near}'?")),
            None if functions.is_empty() => {
                Some("there are no functions yet; deploy one with `fnctl deploy FOLDER`".to_owned())
            }
            None => None,
        };
    }
    let (versions, aliases) = client.selectors(&subject.function)?;
    let near = subject.selector.as_deref().and_then(|written| {
        let fixed = ["live", "latest"];
        nearest(written, aliases.iter().map(String::as_str).chain(fixed))
    });
    let newest: Vec<_> = versions.iter().rev().take(10).map(u64::to_string).collect();
    let mut text = near
        .map(|near| format!("did you mean '{}:{near}'? ", subject.function))
        .unwrap_or_default();
    text.push_str(&format!(
        "'{}' has version {}",
        subject.function,
        newest.join(", ")
    ));
    if !aliases.is_empty() {
        text.push_str(&format!(" and the alias {}", aliases.join(", ")));
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_finds_its_name_and_a_different_word_finds_none() {
        let names = ["fraud", "echo", "embeddings", "file-type", "a"];
        for (written, meant) in [
            ("frad", Some("fraud")),
            ("fruad", Some("fraud")),
            ("embedings", Some("embeddings")),
            ("filetype", Some("file-type")),
            ("ecoh", Some("echo")),
            ("fraud", None),
            ("sentiment", None),
            ("b", None),
            ("", None),
        ] {
            assert_eq!(nearest(written, names), meant, "{written}");
        }
        assert_eq!(nearest(&"x".repeat(10_000), names), None);
        assert_eq!(
            nearest("ab", ["ac", "aa"]),
            Some("aa"),
            "the first of equals by name"
        );
    }
}
