//! Projects that say themselves how they are built: what their command needs, and how to get it.

use super::{Missing, is_executable, on_path};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A command for `sh` in a folder.
pub(super) fn shell(command: &str, folder: &Path) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", command]).current_dir(folder);
    shell
}

/// Words that the shell knows itself, so that nothing needs to be installed for them.
const BUILT_IN: [&str; 16] = [
    ".", ":", "[", "cd", "command", "echo", "eval", "exec", "exit", "export", "false", "printf",
    "set", "test", "true", "umask",
];

/// How a project gets the virtual environment that its command names.
const VENV: &str = "run `python3 -m venv .venv && .venv/bin/pip install -r requirements.txt` in the project's folder";

/// What a build command needs and this machine does not have.
pub(super) fn missing(command: &str, folder: &Path) -> Vec<Missing> {
    let mut missing = Vec::new();
    for words in steps(command) {
        let Some((program, rest)) = words.split_first() else {
            continue;
        };
        let is_there = if program.contains('/') {
            is_executable(&folder.join(program))
        } else {
            BUILT_IN.contains(program) || on_path(program).is_some()
        };
        let name = program.rsplit('/').next().unwrap_or(program);
        let found = match (name, rest) {
            _ if !is_there => Some(Missing {
                what: (*program).to_owned(),
                fix: tool_advice(program, folder),
            }),
            ("python" | "python3", ["-m", module, ..]) => missing_module(program, module, folder),
            ("npm" | "npx", _) => missing_packages(folder),
            _ => None,
        };
        missing.extend(found.filter(|one| !missing.contains(one)));
    }
    missing
}

/// The simple commands of a shell line, as words. Quoting and expansion are left to the shell: a word that holds any of
/// it is no program's name, and is not looked for.
fn steps(command: &str) -> Vec<Vec<&str>> {
    command
        .split(['\n', ';', '|', '&', '(', ')', '{', '}'])
        .map(|step| {
            step.split_whitespace()
                .skip_while(|word| {
                    word.split_once('=').is_some_and(|(name, _)| {
                        name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
                    })
                })
                .collect::<Vec<_>>()
        })
        .filter(|words| {
            words
                .first()
                .is_some_and(|word| !word.contains(['"', '\'', '$', '`', '\\', '<', '>']))
        })
        .collect()
}

fn missing_module(python: &str, module: &str, folder: &Path) -> Option<Missing> {
    let name = module.split('.').next()?;
    let is_plain = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    // A module of the project itself is found from its folder.
    let found = !is_plain
        || Command::new(if python.contains('/') {
            folder.join(python)
        } else {
            PathBuf::from(python)
        })
        .args([
            "-c",
            &format!(
                "import importlib.util, sys; sys.exit(importlib.util.find_spec('{name}') is None)"
            ),
        ])
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    (!found).then(|| Missing {
        what: format!("the Python module {name}"),
        fix: tool_advice(&name.replace('_', "-"), folder),
    })
}

fn missing_packages(folder: &Path) -> Option<Missing> {
    (folder.join("package.json").is_file() && !folder.join("node_modules").is_dir()).then(|| {
        Missing {
            what: "node_modules".to_owned(),
            fix: "run `npm install` in the project's folder".to_owned(),
        }
    })
}

/// How to get a program. A project that pins its tools is asked first.
pub(crate) fn tool_advice(program: &str, folder: &Path) -> String {
    let name = program.rsplit('/').next().unwrap_or(program);
    let pip = |package: &str| {
        let is_pinned =
            std::fs::read_to_string(folder.join("requirements.txt")).is_ok_and(|text| {
                text.lines()
                    .any(|line| line.trim_start().starts_with(package))
            });
        if is_pinned && program.starts_with(".venv/") {
            VENV.to_owned()
        } else if is_pinned {
            "run `pip install -r requirements.txt` in the project's folder (in a virtual environment)".to_owned()
        } else {
            format!("run `pip install {package}`")
        }
    };
    match name {
        "python" | "python3" if program.starts_with(".venv/") => VENV.to_owned(),
        "cargo" | "rustc" | "rustup" => "install Rust from https://rustup.rs".to_owned(),
        "componentize-py" => pip("componentize-py"),
        "ziglang" => pip("ziglang"),
        "python" | "python3" | "pip" => {
            "install Python 3.10 or newer from https://www.python.org or your system's packages"
                .to_owned()
        }
        "node" | "npm" | "npx" => {
            "install Node.js 20 or newer from https://nodejs.org or your system's packages"
                .to_owned()
        }
        "jco" | "componentize-js" => "run `npm install` in the project's folder".to_owned(),
        "zig" => format!(
            "{}, and use `python3 -m ziglang`, or install Zig from https://ziglang.org",
            pip("ziglang")
        ),
        "clang" | "make" | "cmake" | "cc" => format!("install {name} with your system's packages"),
        _ if program.contains('/') => format!(
            "{program} is no program in the project's folder; correct [build] command, or run what makes it"
        ),
        _ => format!("install {name}, or correct [build] command in function.toml"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_programs_of_a_line_are_found() {
        let first = |command| -> Vec<String> {
            steps(command)
                .iter()
                .map(|words| words[0].to_owned())
                .collect()
        };
        let table: [(&str, &[&str]); 4] = [
            ("make", &["make"]),
            ("CC=clang X=1 make -j2 && mv a b", &["make", "mv"]),
            (
                "cd x; (npm run build | tee log) || exit 1",
                &["cd", "npm", "tee", "exit"],
            ),
            ("\"$HOME/bin/x\" y && `which z`", &[]),
        ];
        for (command, programs) in table {
            assert_eq!(first(command), programs, "{command}");
        }
    }

    #[test]
    fn each_missing_tool_is_told_once_with_its_fix() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path();
        assert_eq!(missing("cd . && true", at), []);
        let found = missing("./tool a && ./tool b; surely-no-such-tool", at);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[1].fix.contains("[build] command"));
        std::fs::write(at.join("package.json"), "{}").unwrap();
        assert!(missing_packages(at).unwrap().fix.contains("npm install"));
        std::fs::create_dir(at.join("node_modules")).unwrap();
        assert_eq!(missing_packages(at), None);
        assert_eq!(
            tool_advice("componentize-py", at),
            "run `pip install componentize-py`"
        );
        std::fs::write(at.join("requirements.txt"), "componentize-py==0.1\n").unwrap();
        assert!(tool_advice("componentize-py", at).contains("-r requirements.txt"));
        for program in [".venv/bin/componentize-py", ".venv/bin/python"] {
            assert!(
                missing(program, at)[0].fix.contains("-m venv .venv"),
                "{program}"
            );
        }
    }
}
