//! One file per group of commands.

pub(crate) mod build;
pub(crate) mod change;
pub(crate) mod config;
pub(crate) mod context;
pub(crate) mod deploy;
pub(crate) mod dev;
pub(crate) mod doctor;
pub(crate) mod inference;
pub(crate) mod inference_host;
pub(crate) mod invoke;
pub(crate) mod logs;
pub(crate) mod new;
pub(crate) mod policy;
pub(crate) mod serve;
pub(crate) mod shell;
pub(crate) mod show;
pub(crate) mod status;
pub(crate) mod top;
pub(crate) mod trace;
