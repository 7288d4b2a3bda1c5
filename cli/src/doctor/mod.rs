//! What `fnctl doctor` looks at. `facts` asks the machine and judges nothing; `checks` judges facts and asks nothing, so
//! that every verdict can be tested with a table.

pub(crate) mod checks;
pub(crate) mod facts;

use serde::Serialize;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Level {
    Ok,
    /// Something will not work, or not well, for some.
    Warn,
    /// A platform cannot run like this.
    Fail,
}

impl Level {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// What a check came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    pub(crate) check: &'static str,
    pub(crate) status: Level,
    /// What was found.
    pub(crate) found: String,
    /// What to do; always there unless the status is ok.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) fix: Option<String>,
}

impl Finding {
    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self {
            check,
            status: Level::Ok,
            found: found.into(),
            fix: None,
        }
    }

    fn bad(
        check: &'static str,
        status: Level,
        found: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self {
            check,
            status,
            found: found.into(),
            fix: Some(fix.into()),
        }
    }
}
