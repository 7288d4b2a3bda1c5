//! The file that holds the admin API's token: read if it is there, made with a random token if not.
//!
//! It lets a platform that listens beyond its machine (a container) start closed, without a token that everybody knows.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Random bytes of a new token.
const RANDOM: usize = 24;
/// Most bytes of a token file; a longer one is no token.
const MAX_BYTES: u64 = 4096;

/// The token in a file, without the white space around it. An empty or oversized file is an error.
pub fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?
        .take(MAX_BYTES + 1)
        .read_to_string(&mut text)?;
    let token = text.trim();
    if token.is_empty() || text.len() as u64 > MAX_BYTES || token.contains(char::is_whitespace) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "it must hold one token and nothing else",
        ));
    }
    Ok(token.to_owned())
}

/// The token in a file; where there is no file, one is made with a new random token that only its owner may read.
pub fn read_or_create(path: &Path) -> io::Result<String> {
    match read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => create(path),
        other => other,
    }
}

fn create(path: &Path) -> io::Result<String> {
    let mut random = [0_u8; RANDOM];
    File::open("/dev/urandom")?.read_exact(&mut random)?;
    let token: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    // Linked into place whole: a crash leaves no empty file, and a second platform starting here reads the first's.
    let own = path.with_extension(format!("new-{}", std::process::id()));
    let _ = std::fs::remove_file(&own);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&own)?;
    writeln!(file, "{token}")?;
    file.sync_all()?;
    let linked = std::fs::hard_link(&own, path);
    std::fs::remove_file(&own)?;
    match linked {
        Ok(()) => Ok(token),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => read(path),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_new_token_is_kept_and_only_its_owner_may_read_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deeper/token");
        let token = read_or_create(&path).unwrap();
        assert_eq!(token.len(), 2 * RANDOM);
        assert_eq!(read_or_create(&path).unwrap(), token);
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let left: Vec<_> = path.parent().unwrap().read_dir().unwrap().collect();
        assert_eq!(left.len(), 1, "{left:?}");
        let other = read_or_create(&folder.path().join("other")).unwrap();
        assert_ne!(other, token);
    }

    #[test]
    fn what_is_no_token_is_refused_and_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        for content in ["", " \n", "two words", &"x".repeat(5000)] {
            std::fs::write(&path, content).unwrap();
            let error = read_or_create(&path).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
            assert_eq!(std::fs::read_to_string(&path).unwrap(), content);
        }
        std::fs::write(&path, "  s3cret\n").unwrap();
        assert_eq!(read_or_create(&path).unwrap(), "s3cret");
    }
}
