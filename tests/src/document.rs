//! Documents whose commands are run: the fenced blocks of a Markdown text, and whether an output shows what one of them says.

/// A fenced block.
#[derive(Debug)]
pub struct Block {
    /// What stands behind the opening fence, as in `sh`.
    pub info: String,
    /// The lines between the fences.
    pub text: String,
    /// The line of the opening fence, counted from 1.
    pub line: usize,
}

/// The fenced blocks of a Markdown text, in order.
pub fn blocks(markdown: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut open: Option<Block> = None;
    for (index, line) in markdown.lines().enumerate() {
        let fence = line.trim_start().strip_prefix("```");
        match (&mut open, fence) {
            (None, Some(info)) => {
                open = Some(Block {
                    info: info.trim().to_owned(),
                    text: String::new(),
                    line: index + 1,
                });
            }
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some(block), None) => {
                block.text.push_str(line);
                block.text.push('\n');
            }
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "a block is not closed: {open:?}");
    blocks
}

/// The first line of `expected` that `output` does not have, in the order in which they are expected. `...` stands for anything,
/// and one space for any number of them: columns are as wide as what varies in them.
pub fn missing_line<'a>(expected: &'a str, output: &str) -> Option<&'a str> {
    let mut lines = output.lines().map(squeeze);
    expected
        .lines()
        .filter(|line| !line.trim().is_empty())
        .find(|line| {
            let pattern = squeeze(line);
            !lines.any(|line| fits(&pattern, &line))
        })
}

fn squeeze(line: &str) -> String {
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn fits(pattern: &str, line: &str) -> bool {
    let Some((start, rest)) = pattern.split_once("...") else {
        return pattern == line;
    };
    let Some(mut line) = line.strip_prefix(start) else {
        return false;
    };
    let mut pieces: Vec<&str> = rest.split("...").collect();
    let end = pieces.pop().unwrap_or_default();
    for piece in pieces {
        match line.find(piece) {
            Some(at) => line = &line[at + piece.len()..],
            None => return false,
        }
    }
    line.ends_with(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_have_their_info_text_and_line() {
        let found = blocks("a\n```sh fails\nfnctl ls\n\n```\n```text\nx\n```\n");
        assert_eq!(found.len(), 2);
        assert_eq!(
            (
                found[0].info.as_str(),
                found[0].text.as_str(),
                found[0].line
            ),
            ("sh fails", "fnctl ls\n\n", 2)
        );
        assert_eq!((found[1].info.as_str(), found[1].line), ("text", 6));
    }

    #[test]
    fn an_output_has_the_lines_in_order_or_the_first_that_it_lacks_is_told() {
        let output = "NAME   LIVE\nfraud  1\nrun 2.5 ms of 3\r\n{\"score\":0.75}";
        for expected in [
            "NAME LIVE\nfraud 1\n",
            "fraud 1\n\n{\"score\":0.7...}\n",
            "run ... ms of 3",
            "run ... ms of ...",
            "...",
        ] {
            assert_eq!(missing_line(expected, output), None, "{expected}");
        }
        for (expected, missing) in [
            ("fraud 1\nNAME LIVE", "NAME LIVE"),
            ("fraud", "fraud"),
            ("run ... ms", "run ... ms"),
            ("NAME LIVE\n{\"score\":0.8...}", "{\"score\":0.8...}"),
            ("fraud 1\nfraud 1", "fraud 1"),
            ("run ... s ... ms of 3", "run ... s ... ms of 3"),
        ] {
            assert_eq!(missing_line(expected, output), Some(missing), "{expected}");
        }
    }
}
