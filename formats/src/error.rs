//! The one error type that the libraries share: what went wrong, in which file and tensor, and how to mend it.

use std::fmt;
use std::path::{Path, PathBuf};

/// The result type of every fallible function in the workspace's libraries.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What sort of thing went wrong. Each kind has one process exit code, after `sysexits.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// Something failed that fits no other kind.
    Failed,
    /// The caller asked for something that makes no sense.
    Usage,
    /// A quality gate did not hold.
    Gate,
    /// Input data is corrupt, truncated, non-finite or inconsistent.
    Corrupt,
    /// An input file or tensor is missing.
    Missing,
    /// An architecture, type or feature that bitsmith does not know.
    Unsupported,
    /// An output cannot be created.
    CannotWrite,
    /// Reading or writing failed, the disk is full for example.
    Io,
    /// A passing failure, of the network for example: trying again may help.
    Transient,
    /// The hub refused access.
    NotAuthorised,
    /// The user interrupted the run.
    Interrupted,
}

impl ErrorKind {
    /// The process exit code.
    pub fn exit_code(self) -> u8 {
        match self {
            ErrorKind::Failed => 1,
            ErrorKind::Usage => 2,
            ErrorKind::Gate => 3,
            ErrorKind::Corrupt => 65,
            ErrorKind::Missing => 66,
            ErrorKind::Unsupported => 69,
            ErrorKind::CannotWrite => 73,
            ErrorKind::Io => 74,
            ErrorKind::Transient => 75,
            ErrorKind::NotAuthorised => 77,
            ErrorKind::Interrupted => 130,
        }
    }

    /// What helps with errors of this kind, where nothing better is known.
    pub fn remedy(self) -> Option<&'static str> {
        Some(match self {
            ErrorKind::Corrupt => "the file is damaged, incomplete or of another kind: download it or write it again",
            ErrorKind::Missing => "check the path, or download what is missing",
            ErrorKind::Unsupported => "`bitsmith check MODEL --to TARGET` says what can be read, run and written",
            ErrorKind::CannotWrite => "choose another place for the output, or change its permissions",
            ErrorKind::Io => "check the disk and the file's permissions, and run the command again",
            ErrorKind::Transient => "run the command again",
            ErrorKind::Usage => "`bitsmith COMMAND --help` explains what can be given",
            ErrorKind::Failed | ErrorKind::Gate | ErrorKind::NotAuthorised | ErrorKind::Interrupted => return None,
        })
    }
    /// The stable name used in `--json` output.
    pub fn name(self) -> &'static str {
        match self {
            ErrorKind::Failed => "failed",
            ErrorKind::Usage => "usage",
            ErrorKind::Gate => "gate",
            ErrorKind::Corrupt => "corrupt",
            ErrorKind::Missing => "missing",
            ErrorKind::Unsupported => "unsupported",
            ErrorKind::CannotWrite => "cannot_write",
            ErrorKind::Io => "io",
            ErrorKind::Transient => "transient",
            ErrorKind::NotAuthorised => "not_authorised",
            ErrorKind::Interrupted => "interrupted",
        }
    }
}

/// An error with its place and remedy. Build one with a kind's constructor and add what is known:
///
/// ```
/// use bitsmith_formats::Error;
/// let e = Error::corrupt("data ends at byte 100, the header promises 200")
///     .file("model.safetensors").tensor("lm_head.weight").hint("download the file again");
/// assert_eq!(e.kind.exit_code(), 65);
/// ```
#[derive(Debug, thiserror::Error)]
pub struct Error {
    /// The sort of failure.
    pub kind: ErrorKind,
    /// What happened, without the place.
    pub message: String,
    /// The file concerned.
    pub file: Option<PathBuf>,
    /// The tensor concerned.
    pub tensor: Option<String>,
    /// What the user can do.
    pub hint: Option<String>,
    /// The underlying error.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// A new error of `kind`.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Error { kind, message: message.into(), file: None, tensor: None, hint: None, source: None }
    }
    /// [`ErrorKind::Failed`].
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Failed, message)
    }
    /// [`ErrorKind::Usage`].
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Usage, message)
    }
    /// [`ErrorKind::Corrupt`].
    pub fn corrupt(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Corrupt, message)
    }
    /// [`ErrorKind::Missing`].
    pub fn missing(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Missing, message)
    }
    /// [`ErrorKind::Unsupported`].
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unsupported, message)
    }
    /// An I/O error while reading `file`: "not found" becomes [`ErrorKind::Missing`].
    pub fn read(file: impl AsRef<Path>, e: std::io::Error) -> Self {
        let kind = match e.kind() {
            std::io::ErrorKind::NotFound => ErrorKind::Missing,
            std::io::ErrorKind::UnexpectedEof | std::io::ErrorKind::InvalidData => ErrorKind::Corrupt,
            _ => ErrorKind::Io,
        };
        Self::new(kind, e.to_string()).file(file).with_source(e)
    }
    /// An I/O error while writing `file`: a path that cannot be created is [`ErrorKind::CannotWrite`], the rest [`ErrorKind::Io`].
    pub fn write(file: impl AsRef<Path>, e: std::io::Error) -> Self {
        use std::io::ErrorKind as K;
        let (kind, hint) = match e.kind() {
            K::PermissionDenied | K::NotFound | K::ReadOnlyFilesystem | K::NotADirectory | K::IsADirectory | K::AlreadyExists => {
                (ErrorKind::CannotWrite, None)
            }
            K::StorageFull | K::QuotaExceeded | K::FileTooLarge => {
                (ErrorKind::Io, Some("free some disk space, or choose another output folder"))
            }
            _ => (ErrorKind::Io, None),
        };
        let mut error = Self::new(kind, format!("cannot write: {e}")).file(file).with_source(e);
        error.hint = hint.map(String::from);
        error
    }

    /// Names the file, unless one is named already.
    pub fn file(mut self, file: impl AsRef<Path>) -> Self {
        self.file.get_or_insert_with(|| file.as_ref().to_path_buf());
        self
    }
    /// Names the tensor, unless one is named already.
    pub fn tensor(mut self, tensor: impl Into<String>) -> Self {
        self.tensor.get_or_insert_with(|| tensor.into());
        self
    }
    /// Says what the user can do.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
    /// What the user can do: the hint, or what helps with errors of its kind.
    pub fn remedy(&self) -> Option<&str> {
        self.hint.as_deref().or(self.kind.remedy())
    }
    /// Keeps the underlying error.
    pub fn with_source(mut self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.source = Some(Box::new(source));
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{}: ", file.display())?;
        }
        if let Some(tensor) = &self.tensor {
            write!(f, "tensor `{tensor}`: ")?;
        }
        write!(f, "{}", self.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_have_the_codes_and_names_that_scripts_rely_on() {
        let contract = [
            (ErrorKind::Failed, 1, "failed"),
            (ErrorKind::Usage, 2, "usage"),
            (ErrorKind::Gate, 3, "gate"),
            (ErrorKind::Corrupt, 65, "corrupt"),
            (ErrorKind::Missing, 66, "missing"),
            (ErrorKind::Unsupported, 69, "unsupported"),
            (ErrorKind::CannotWrite, 73, "cannot_write"),
            (ErrorKind::Io, 74, "io"),
            (ErrorKind::Transient, 75, "transient"),
            (ErrorKind::NotAuthorised, 77, "not_authorised"),
            (ErrorKind::Interrupted, 130, "interrupted"),
        ];
        for (kind, code, name) in contract {
            assert_eq!((kind.exit_code(), kind.name()), (code, name));
        }
    }

    #[test]
    fn errors_of_the_system_become_kinds_with_their_place() {
        use std::io::{Error as Io, ErrorKind as K};
        for (of, read, written) in [
            (K::NotFound, ErrorKind::Missing, ErrorKind::CannotWrite),
            (K::UnexpectedEof, ErrorKind::Corrupt, ErrorKind::Io),
            (K::PermissionDenied, ErrorKind::Io, ErrorKind::CannotWrite),
            (K::StorageFull, ErrorKind::Io, ErrorKind::Io),
        ] {
            assert_eq!(Error::read("a", Io::from(of)).kind, read, "{of:?}");
            let error = Error::write("a", Io::from(of)).tensor("t").file("another").tensor("u");
            assert_eq!(error.kind, written, "{of:?}");
            assert_eq!(error.hint.is_some(), of == K::StorageFull);
            assert!(
                error.to_string().starts_with("a: tensor `t`: cannot write: ") && std::error::Error::source(&error).is_some()
            );
        }
        let given = Error::missing("no file").hint("look elsewhere");
        assert_eq!(given.remedy(), Some("look elsewhere"));
        assert_eq!(Error::missing("no file").remedy(), ErrorKind::Missing.remedy());
    }
}
