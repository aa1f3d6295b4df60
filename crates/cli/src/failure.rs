use std::process::ExitCode;

use tensorpress::{Error, ErrorKind};

use crate::output::say;

/// Why a command ended early.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The command line asks for something impossible: exit code 2.
    Usage(String),
    /// The work failed: exit code 1.
    Failed(Error),
    /// What is wrong was said already: exit code 1.
    Told,
    /// Somebody asked to stop once the work was done: nothing to say; exit code 130, as of Ctrl-C.
    Stopped,
    /// Nobody reads standard output any more: not worth a word.
    Closed,
}

pub(crate) type Outcome<T = ()> = std::result::Result<T, Failure>;

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl Failure {
    /// An argument that cannot be understood is wrong usage; a file behind it that cannot be read is not.
    pub(crate) fn of_argument(flag: &str, error: Error) -> Self {
        match error.kind() {
            ErrorKind::InvalidArgument | ErrorKind::Unsupported | ErrorKind::MissingCalibration => {
                Self::Usage(format!("{flag}: {error}"))
            }
            _ => Self::Failed(error),
        }
    }

    pub(crate) fn report(&self) -> ExitCode {
        match self {
            Self::Usage(message) => {
                say!("error: {message}\n\nFor more information, try '--help'.");
                ExitCode::from(2)
            }
            Self::Failed(error) => {
                match error.kind() {
                    ErrorKind::Exists => say!("error: {error}; --force replaces it"),
                    ErrorKind::MissingBase => say!("error: {error}; --base names it"),
                    _ => say!("error: {error}"),
                }
                ExitCode::from(1)
            }
            Self::Stopped => ExitCode::from(130),
            Self::Told | Self::Closed => ExitCode::from(1),
        }
    }
}
