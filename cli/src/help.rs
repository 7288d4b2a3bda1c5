//! The help of `fnctl` itself: commands by purpose, exit codes, variables. Each command's own help stands in `args`.

use crate::args::Cli;
use crate::exit::Exit;
use clap::CommandFactory;

pub(crate) const EXAMPLES: &str = "Examples:
  fnctl serve
  fnctl deploy examples/fraud
  fnctl invoke fraud -d @examples/fraud/request.json
  fnctl ls -o yaml
  fnctl context add prod https://fnctl.example.com --token-stdin

`fnctl COMMAND --help` shows the examples of a command, `fnctl --help` exit codes and variables too.";

/// The commands by purpose, in the order of use. A command that is in no group comes last, under "Other".
const GROUPS: [(&str, &[&str]); 6] = [
    ("Run", &["serve", "invoke"]),
    ("Deploy", &["new", "build", "dev", "deploy"]),
    (
        "Look",
        &[
            "top",
            "status",
            "ls",
            "get",
            "versions",
            "logs",
            "inference",
        ],
    ),
    ("Change", &["rollback", "alias", "rm"]),
    ("Plan", &["policy", "trace"]),
    (
        "Configure",
        &["context", "token", "config", "doctor", "completions", "man"],
    ),
];

const VARIABLES: &str = "Variables:
  FNCTL_SERVER, FNCTL_TOKEN   the platform and its token, before the current context
  FNCTL_CONTEXT               the context to use instead of the current one
  FNCTL_CA_FILE               PEM certificates to trust for https
  NO_COLOR, CLICOLOR_FORCE    never colours nor bars; colours also in a pipe
  FNCTL_*                     settings of `fnctl serve`: docs/config.md";

/// The whole command line.
pub(crate) fn command() -> clap::Command {
    let command = Cli::command();
    let mut groups = String::new();
    for (title, names) in groups_of(&command) {
        groups.push_str(&format!("{title}:\n"));
        for name in names {
            let about = command
                .find_subcommand(name)
                .and_then(clap::Command::get_about);
            let about = about.map(ToString::to_string).unwrap_or_default();
            groups.push_str(&format!("  {name:<12} {about}\n"));
        }
        groups.push('\n');
    }
    let template = format!(
        "{{about-with-newline}}\n{{usage-heading}} {{usage}}\n\n{groups}Options:\n{{options}}{{after-help}}"
    );
    let mut codes = String::from("Exit codes:\n");
    for exit in Exit::ALL {
        codes.push_str(&format!("  {}  {}\n", exit.number(), exit.meaning()));
    }
    let long = format!("{EXAMPLES}\n\n{codes}\n{VARIABLES}");
    command.help_template(template).after_long_help(long)
}

/// The groups with the commands that there are.
fn groups_of(command: &clap::Command) -> Vec<(&'static str, Vec<&str>)> {
    let known: Vec<_> = command
        .get_subcommands()
        .filter(|command| !command.is_hide_set())
        .map(clap::Command::get_name)
        .collect();
    let mut groups: Vec<(&'static str, Vec<&str>)> = GROUPS
        .iter()
        .map(|(title, names)| {
            let there = names
                .iter()
                .filter_map(|name| known.iter().find(|known| *known == name));
            (*title, there.copied().collect())
        })
        .collect();
    let is_grouped = |name: &str| GROUPS.iter().any(|(_, names)| names.contains(&name));
    let other: Vec<_> = known
        .iter()
        .copied()
        .filter(|name| !is_grouped(name))
        .collect();
    if !other.is_empty() {
        groups.push(("Other", other));
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_is_in_one_group() {
        let command = Cli::command();
        let groups = groups_of(&command);
        assert!(
            groups
                .iter()
                .all(|(title, names)| *title != "Other" && !names.is_empty()),
            "{groups:?}"
        );
        let listed: usize = groups.iter().map(|(_, names)| names.len()).sum();
        let shown = |command: &&clap::Command| !command.is_hide_set();
        assert_eq!(listed, command.get_subcommands().filter(shown).count());
    }

    #[test]
    fn the_help_lists_commands_by_purpose_and_every_exit_code() {
        let help = super::command().render_long_help().to_string();
        for (title, _) in GROUPS {
            assert!(help.contains(&format!("\n{title}:\n")), "{help}");
        }
        for exit in Exit::ALL {
            assert!(help.contains(exit.meaning()), "{help}");
        }
        assert!(help.contains("--context") && help.contains("Examples:"));
    }
}
