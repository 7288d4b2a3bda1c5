//! What a function's instances are worth: what each rung of the ladder costs a caller who finds it missing, and what
//! keeping it takes.

use fnctl_core::ladder::LowerRungs;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// One rung of the ladder.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Rung {
    /// Seconds that a caller waits until it is there.
    pub cold: f32,
    /// Bytes that it takes while it is there.
    pub bytes: f32,
}

impl Rung {
    /// From measured numbers.
    pub fn of(cold: Duration, bytes: u64) -> Self {
        Self {
            cold: cold.as_secs_f32(),
            bytes: bytes as f32,
        }
    }

    /// Whether having it makes no difference.
    pub fn is_nothing(self) -> bool {
        self.cold <= 0.0 && self.bytes <= 0.0
    }
}

/// What an instance of a function is worth, rung by rung.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Worth {
    /// An idle instance on top of the others, and starting it on them.
    pub sandbox: Rung,
    /// The sessions of its models.
    pub session: Rung,
    /// Its compiled code.
    pub template: Rung,
}

impl Worth {
    /// What is assumed of a function that was never started.
    pub const UNKNOWN: Self = Self {
        sandbox: Rung {
            cold: 0.25,
            bytes: 134_217_728.0,
        },
        session: Rung {
            cold: 0.0,
            bytes: 0.0,
        },
        template: Rung {
            cold: 0.0,
            bytes: 0.0,
        },
    };

    /// Of a sandbox with nothing below it, from measured numbers; what is not positive is made the least that counts.
    pub fn of(cold: Duration, bytes: u64) -> Self {
        Self {
            sandbox: Rung {
                cold: cold.as_secs_f32().max(1e-4),
                bytes: (bytes as f32).max(1024.0),
            },
            session: Rung::default(),
            template: Rung::default(),
        }
    }

    /// The same sandbox on these rungs.
    pub fn upon(self, lower: &LowerRungs) -> Self {
        Self {
            session: Rung::of(lower.session.took, lower.session.bytes),
            template: Rung::of(lower.template.took, lower.template.bytes),
            ..self
        }
    }

    /// Seconds that a caller waits when every rung is missing: models load while code does.
    pub fn cold(&self) -> f32 {
        self.sandbox.cold + self.session.cold.max(self.template.cold)
    }

    /// Bytes of all rungs.
    pub fn bytes(&self) -> f32 {
        self.sandbox.bytes + self.session.bytes + self.template.bytes
    }

    /// Learns from one more start and size: of the sandbox a moving mean of about eight, of the rungs below, which are
    /// measured once for each time they are made, the last.
    pub fn learn(&mut self, measured: Self) {
        self.sandbox.cold += (measured.sandbox.cold - self.sandbox.cold) / 8.0;
        self.sandbox.bytes += (measured.sandbox.bytes - self.sandbox.bytes) / 8.0;
        self.session = measured.session;
        self.template = measured.template;
    }
}
