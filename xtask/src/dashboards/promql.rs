//! What an expression names: its selectors, found without a full parser. Prometheus itself says whether it is PromQL.

/// Words that stand where a metric could.
const KEYWORDS: &[&str] = &[
    "and", "or", "unless", "bool", "offset", "inf", "nan", "atan2",
];
/// Words before a list of labels.
const GROUPINGS: &[&str] = &[
    "by",
    "without",
    "on",
    "ignoring",
    "group_left",
    "group_right",
];

/// A metric with its label matchers, where it stands in the expression.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Selector<'a> {
    /// As written: `up{job="fnctl"}`.
    pub(crate) text: &'a str,
    /// Byte offset of the metric's last letter.
    last_letter: usize,
}

/// The selectors of an expression, in order.
pub(crate) fn selectors(expr: &str) -> Vec<Selector<'_>> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(letter) = expr.get(at..).and_then(|rest| rest.chars().next()) {
        let here = expr.get(at..).unwrap_or_default();
        at += match letter {
            '#' => here.find('\n').unwrap_or(here.len()),
            '"' | '\'' | '`' => string(here),
            '[' => here.find(']').map_or(here.len(), |end| end + 1),
            '0'..='9' => word(here, |c| c.is_ascii_alphanumeric() || c == '.'),
            'a'..='z' | 'A'..='Z' | '_' | ':' => {
                let length = word(here, is_name);
                let (name, rest) = here.split_at(length);
                let blank = rest.len() - rest.trim_start().len();
                let next = rest.trim_start();
                let next_word = next.get(..word(next, is_name)).unwrap_or_default();
                if GROUPINGS.contains(&name) && next.starts_with('(') {
                    length + rest.find(')').map_or(rest.len(), |end| end + 1)
                } else if GROUPINGS.contains(&name)
                    || KEYWORDS.contains(&name.to_ascii_lowercase().as_str())
                    || next.starts_with('(')
                    || ["by", "without"].contains(&next_word)
                {
                    length
                } else {
                    let whole = match next.starts_with('{') {
                        true => length + blank + braces(next),
                        false => length,
                    };
                    found.push(Selector {
                        text: here.get(..whole).unwrap_or(name),
                        last_letter: at + length - 1,
                    });
                    whole
                }
            }
            other => other.len_utf8(),
        };
    }
    found
}

/// The expression with each of its metrics misspelt in turn: its last letter doubled.
pub(crate) fn misspelt(expr: &str) -> Vec<String> {
    selectors(expr)
        .iter()
        .map(|selector| {
            let (before, after) = expr.split_at(selector.last_letter);
            let letter = after.chars().next().unwrap_or('x');
            format!("{before}{letter}{after}")
        })
        .collect()
}

fn is_name(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || letter == '_' || letter == ':'
}

fn word(text: &str, is_part: impl Fn(char) -> bool) -> usize {
    text.find(|c| !is_part(c)).unwrap_or(text.len())
}

/// Length of the string literal that the text begins with.
fn string(text: &str) -> usize {
    let mut letters = text.char_indices();
    let quote = letters.next().map(|(_, quote)| quote);
    let mut escaped = false;
    for (at, letter) in letters {
        match letter {
            _ if escaped => escaped = false,
            '\\' if quote != Some('`') => escaped = true,
            _ if Some(letter) == quote => return at + letter.len_utf8(),
            _ => {}
        }
    }
    text.len()
}

/// Length of the label matchers that the text begins with.
fn braces(text: &str) -> usize {
    let mut at = 1;
    while let Some(letter) = text.get(at..).and_then(|rest| rest.chars().next()) {
        match letter {
            '}' => return at + 1,
            '"' | '\'' | '`' => at += string(text.get(at..).unwrap_or_default()),
            other => at += other.len_utf8(),
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(expr: &str) -> Vec<&str> {
        selectors(expr).iter().map(|found| found.text).collect()
    }

    #[test]
    fn selectors_are_told_from_functions_labels_strings_and_durations() {
        assert_eq!(
            texts(
                r#"histogram_quantile(0.95, sum by (function, le) (rate(a_bucket{kind=~"x}|y",b="\""}[5m]))) > on (function) group_left r:b # c_d
                   and sum(e offset 1h) without (f) > 1e9 or absent(up {job='a'}) / ignoring(g) h"#
            ),
            [
                r#"a_bucket{kind=~"x}|y",b="\""}"#,
                "r:b",
                "e",
                "up {job='a'}",
                "h"
            ]
        );
        assert!(texts("vector(1) + 0x1f + Inf").is_empty());
    }

    #[test]
    fn every_metric_is_misspelt_once() {
        assert_eq!(
            misspelt(r#"sum(a_total{b="c"}) / d"#),
            [r#"sum(a_totall{b="c"}) / d"#, r#"sum(a_total{b="c"}) / dd"#]
        );
    }

    #[test]
    fn unfinished_expressions_end() {
        for expr in ["a{b=\"", "a{", "a[", "sum by (", "\"", "#", "é{"] {
            selectors(expr);
        }
    }
}
