//! One error type for the whole workspace: a kind to act on, a message to read, and where it happened.

use std::fmt;
use std::path::{Path, PathBuf};

/// Result with tensorpress's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, in terms a caller can act on.
///
/// ```
/// use tensorpress_tensor::{DType, ErrorKind, ndarray::Array2, node::Dense};
///
/// let integers = Dense::from_f32(Array2::zeros((1, 1)).view(), DType::U8);
/// assert_eq!(integers.unwrap_err().kind(), ErrorKind::Unsupported);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A parameter is outside what is allowed; the message names the parameter, value and range.
    InvalidArgument,
    /// Two shapes that must agree do not.
    ShapeMismatch,
    /// A method needs a calibration statistic that was not collected.
    MissingCalibration,
    /// The combination asked for does not exist.
    Unsupported,
    /// Non-finite values or a matrix that cannot be factored.
    Numerical,
    /// Bytes that contradict their own format.
    Corruption,
    /// A file that ends too early, or an input with nothing in it.
    InsufficientData,
    /// Written by a version this build cannot read.
    Version,
    /// The operating system refused.
    Io,
    /// The caller asked to stop.
    Interrupted,
    /// Something is there already, and the caller did not say that it may be replaced.
    Exists,
    /// What is stored is a difference, and what it differs from was not given.
    MissingBase,
}

/// An error: its [`ErrorKind`], a message, and the tensor and file it concerns where known.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    tensor: Option<String>,
    file: Option<PathBuf>,
    source: Option<std::io::Error>,
}

macro_rules! constructors {
    ($($(#[$doc:meta])* $name:ident => $kind:ident;)*) => {
        $($(#[$doc])*
        #[must_use]
        pub fn $name(message: impl Into<String>) -> Self {
            Self::new(ErrorKind::$kind, message)
        })*
    };
}

impl Error {
    /// An error of the given kind.
    #[must_use]
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), tensor: None, file: None, source: None }
    }

    constructors! {
        /// [`ErrorKind::InvalidArgument`].
        invalid => InvalidArgument;
        /// [`ErrorKind::ShapeMismatch`].
        shape => ShapeMismatch;
        /// [`ErrorKind::MissingCalibration`].
        missing_calibration => MissingCalibration;
        /// [`ErrorKind::Unsupported`].
        unsupported => Unsupported;
        /// [`ErrorKind::Numerical`].
        numerical => Numerical;
        /// [`ErrorKind::Corruption`].
        corruption => Corruption;
        /// [`ErrorKind::InsufficientData`].
        insufficient => InsufficientData;
        /// [`ErrorKind::Version`].
        version => Version;
        /// [`ErrorKind::Interrupted`].
        interrupted => Interrupted;
        /// [`ErrorKind::Exists`].
        exists => Exists;
        /// [`ErrorKind::MissingBase`].
        missing_base => MissingBase;
    }

    /// An operating-system error on `file`; `doing` completes the sentence "cannot ...".
    #[must_use]
    pub fn io(doing: &str, file: impl AsRef<Path>, source: std::io::Error) -> Self {
        let mut error = Self::new(ErrorKind::Io, format!("cannot {doing}: {source}"));
        error.file = Some(file.as_ref().to_path_buf());
        error.source = Some(source);
        error
    }

    /// [`ErrorKind::Io`]: an input was written to while it was read.
    #[must_use]
    pub fn moved(file: impl AsRef<Path>) -> Self {
        Self::new(ErrorKind::Io, "was changed or cut while it was read").in_file(file)
    }

    /// Names the tensor concerned, unless a more specific one is named already.
    #[must_use]
    pub fn in_tensor(mut self, name: impl Into<String>) -> Self {
        self.tensor.get_or_insert_with(|| name.into());
        self
    }

    /// Names the file concerned, unless one is named already.
    #[must_use]
    pub fn in_file(mut self, path: impl AsRef<Path>) -> Self {
        self.file.get_or_insert_with(|| path.as_ref().to_path_buf());
        self
    }

    /// What a caller can act on.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The tensor concerned, where known.
    #[must_use]
    pub fn tensor(&self) -> Option<&str> {
        self.tensor.as_deref()
    }

    /// The file concerned, where known.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// The message without tensor and file.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
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
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|e| e as _)
    }
}

/// Adds the tensor or file to an error on its way up.
pub trait Context<T> {
    /// Names the tensor concerned.
    fn in_tensor(self, name: &str) -> Result<T>;
    /// Names the file concerned.
    fn in_file(self, path: &Path) -> Result<T>;
}

impl<T> Context<T> for Result<T> {
    fn in_tensor(self, name: &str) -> Result<T> {
        self.map_err(|e| e.in_tensor(name))
    }
    fn in_file(self, path: &Path) -> Result<T> {
        self.map_err(|e| e.in_file(path))
    }
}
