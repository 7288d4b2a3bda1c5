//! Where the ONNX Runtime library is looked for.

use crate::config::Config;
use fnctl_core::inference::{InferenceError, InferenceErrorKind};
use std::path::{Path, PathBuf};

/// The library's file name on this system.
pub const LIBRARY_NAME: &str = if cfg!(target_os = "macos") {
    "libonnxruntime.dylib"
} else {
    "libonnxruntime.so"
};

/// Every place that is looked at, in order: the setting, `ORT_DYLIB_PATH`, next to the executable, fnctl's cache
/// folder, the system's library folders.
pub fn candidates(setting: Option<&Path>) -> Vec<PathBuf> {
    let mut places = Vec::new();
    places.extend(setting.map(Path::to_path_buf));
    places.extend(
        std::env::var_os("ORT_DYLIB_PATH")
            .filter(|path| !path.is_empty())
            .map(PathBuf::from),
    );
    if let Ok(executable) = std::env::current_exe()
        && let Some(folder) = executable.parent()
    {
        places.push(folder.join(LIBRARY_NAME));
        places.push(folder.join("../lib").join(LIBRARY_NAME));
    }
    let cache = std::env::var_os("FNCTL_CACHE")
        .map(PathBuf::from)
        .or_else(|| {
            std::env::var_os("XDG_CACHE_HOME").map(|home| PathBuf::from(home).join("fnctl"))
        })
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/fnctl")));
    places.extend(cache.map(|cache| cache.join("onnxruntime").join(LIBRARY_NAME)));
    for folder in [
        "/usr/local/lib",
        "/usr/lib",
        "/usr/lib/x86_64-linux-gnu",
        "/usr/lib/aarch64-linux-gnu",
        "/opt/homebrew/lib",
    ] {
        places.push(Path::new(folder).join(LIBRARY_NAME));
    }
    places
}

/// The first candidate that exists.
pub fn find(config: &Config) -> Result<PathBuf, InferenceError> {
    let places = candidates(config.library.as_deref());
    places.iter().find(|place| place.is_file()).cloned().ok_or_else(|| {
        let looked: Vec<_> = places.iter().map(|place| place.display().to_string()).collect();
        InferenceError::new(
            InferenceErrorKind::Unavailable,
            format!(
                "the ONNX Runtime library was not found; run `cargo xtask setup` in fnctl's source, or unpack it from the \
                 `onnxruntime` Python wheel (onnxruntime/capi/libonnxruntime.so*) and set ORT_DYLIB_PATH to it. Looked at: {}",
                looked.join(", ")
            ),
        )
    })
}
