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

/// fnctl's cache folder: `FNCTL_CACHE`, or `fnctl` under the user's cache folder. None without a home.
pub fn cache_folder() -> Option<PathBuf> {
    std::env::var_os("FNCTL_CACHE")
        .map(PathBuf::from)
        .or_else(|| {
            std::env::var_os("XDG_CACHE_HOME").map(|home| PathBuf::from(home).join("fnctl"))
        })
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/fnctl")))
}

/// Version of the C API that the `api-24` feature of `ort` asks the library for.
pub(crate) const API_VERSION: u32 = 24;

/// Loads the library that the platform would use, and returns its path and its minor version: 31 of 1.31. Nothing of it
/// is started.
pub fn probe(config: &Config) -> Result<(PathBuf, u32), InferenceError> {
    let path = find(config)?;
    match ort::util::probe(&path) {
        Some(version) if version >= API_VERSION => Ok((path, version)),
        other => {
            let found = other.map_or_else(String::new, |version| format!(" (it is 1.{version})"));
            Err(InferenceError::new(
                InferenceErrorKind::Unavailable,
                format!(
                    "the ONNX Runtime library {} cannot be used: it is no ONNX Runtime 1.{API_VERSION} or newer{found}",
                    path.display()
                ),
            ))
        }
    }
}

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
    places.extend(cache_folder().map(|cache| cache.join("onnxruntime").join(LIBRARY_NAME)));
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
