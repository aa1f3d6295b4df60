//! How calls end: a status, and an error in the caller's own memory.

use std::any::Any;
use std::ffi::c_char;
use std::panic::{AssertUnwindSafe, catch_unwind};

use press::ErrorKind;

/// Bytes of the message of a `tp_error`, its final zero included.
pub const TP_MESSAGE_BYTES: usize = 1020;

/// How a call ended. 1 to 12 are the kinds of errors of tensorpress; from 32 on the call itself was wrong, and nothing
/// was done.
#[repr(i32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum tp_status {
    /// It did what was asked.
    Ok = 0,
    /// An argument is outside what is allowed; the message names it, its value and what is allowed.
    InvalidArgument = 1,
    /// Two shapes that must agree do not.
    ShapeMismatch = 2,
    /// A method needs samples of inputs that were not given.
    MissingCalibration = 3,
    /// The combination asked for does not exist.
    Unsupported = 4,
    /// Numbers that are not finite, or a matrix that cannot be factored.
    Numerical = 5,
    /// Bytes that contradict their own format.
    Corruption = 6,
    /// A file that ends too early, an input with nothing in it, or no tensor of this name.
    InsufficientData = 7,
    /// Written by a version that this library cannot read.
    Version = 8,
    /// The operating system refused.
    Io = 9,
    /// The work was told to stop.
    Interrupted = 10,
    /// Something is there already, and the caller did not say that it may be replaced.
    Exists = 11,
    /// What is stored is a difference, and what it differs from was not given.
    MissingBase = 12,
    /// An error of a kind that this header does not know.
    Other = 31,
    /// A pointer is null that must not be.
    NullPointer = 32,
    /// A text is not UTF-8.
    BadUtf8 = 33,
    /// A length is not the one that the shapes imply; the message says which it must be.
    WrongLength = 34,
    /// A buffer is too short for the result; the length needed was written.
    BufferTooSmall = 35,
    /// A pointer is not aligned to what it points to.
    Misaligned = 36,
    /// An output overlaps an input or another output.
    Overlap = 37,
    /// The handle is zero, closed, of another kind or of another context.
    Closed = 38,
    /// Another call works with this scratch or cache, which take one at a time.
    Busy = 39,
    /// A fault of tensorpress itself: it was caught, and what the call worked on answers `TP_STATUS_PANIC` from now on.
    Panic = 40,
}

/// What went wrong, in the caller's memory: nothing has to be freed, and nothing is shared between threads. Every
/// function that takes one writes it (`TP_STATUS_OK` and an empty message if all went well), unless it is null.
#[repr(C)]
pub struct tp_error {
    /// What the function returned.
    pub status: tp_status,
    /// For a person, naming tensor and file where they are known: UTF-8, ended by a zero, cut if it is too long.
    pub message: [c_char; TP_MESSAGE_BYTES],
}

/// An error on its way to the caller.
#[derive(Debug)]
pub(crate) struct Failure {
    status: tp_status,
    message: String,
}

pub(crate) type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    pub(crate) fn new(status: tp_status, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    pub(crate) fn null(name: &str) -> Self {
        Self::new(tp_status::NullPointer, format!("`{name}` is null"))
    }

    fn panic(payload: &(dyn Any + Send)) -> Self {
        let text = payload.downcast_ref::<&str>().copied();
        let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        let text = text.unwrap_or("of no words");
        Self::new(tp_status::Panic, format!("a fault of tensorpress: {text}"))
    }
}

impl From<press::Error> for Failure {
    fn from(error: press::Error) -> Self {
        let status = match error.kind() {
            ErrorKind::InvalidArgument => tp_status::InvalidArgument,
            ErrorKind::ShapeMismatch => tp_status::ShapeMismatch,
            ErrorKind::MissingCalibration => tp_status::MissingCalibration,
            ErrorKind::Unsupported => tp_status::Unsupported,
            ErrorKind::Numerical => tp_status::Numerical,
            ErrorKind::Corruption => tp_status::Corruption,
            ErrorKind::InsufficientData => tp_status::InsufficientData,
            ErrorKind::Version => tp_status::Version,
            ErrorKind::Io => tp_status::Io,
            ErrorKind::Interrupted => tp_status::Interrupted,
            ErrorKind::Exists => tp_status::Exists,
            ErrorKind::MissingBase => tp_status::MissingBase,
            _ => tp_status::Other,
        };
        Self::new(status, error.to_string())
    }
}

/// Runs `work` and writes how it ended. Whatever a panic may have left half done lies behind locks, which remember it.
///
/// # Safety
/// `error` must be null or point to memory for a `tp_error` that nothing else uses meanwhile.
pub(crate) unsafe fn guard(error: *mut tp_error, work: impl FnOnce() -> Outcome) -> tp_status {
    let done = catch_unwind(AssertUnwindSafe(work));
    let done = done.unwrap_or_else(|payload| Err(Failure::panic(&*payload)));
    let (status, message) = match &done {
        Ok(()) => (tp_status::Ok, ""),
        Err(failure) => (failure.status, failure.message.as_str()),
    };
    if error.is_null() || !error.is_aligned() {
        return status;
    }
    let mut length = message.len().min(TP_MESSAGE_BYTES - 1);
    while !message.is_char_boundary(length) {
        length -= 1;
    }
    // SAFETY: it is not null, aligned, and the caller gives it to us; only as much is written as there is room for.
    unsafe {
        (&raw mut (*error).status).write(status);
        let to = (&raw mut (*error).message).cast::<u8>();
        to.copy_from_nonoverlapping(message.as_ptr(), length);
        to.add(length).write(0);
    }
    status
}

/// The name of a status as this header spells it, or "unknown": a text that is always there.
#[unsafe(no_mangle)]
pub extern "C" fn tp_status_name(status: i32) -> *const c_char {
    let name = match status {
        0 => c"TP_STATUS_OK",
        1 => c"TP_STATUS_INVALID_ARGUMENT",
        2 => c"TP_STATUS_SHAPE_MISMATCH",
        3 => c"TP_STATUS_MISSING_CALIBRATION",
        4 => c"TP_STATUS_UNSUPPORTED",
        5 => c"TP_STATUS_NUMERICAL",
        6 => c"TP_STATUS_CORRUPTION",
        7 => c"TP_STATUS_INSUFFICIENT_DATA",
        8 => c"TP_STATUS_VERSION",
        9 => c"TP_STATUS_IO",
        10 => c"TP_STATUS_INTERRUPTED",
        11 => c"TP_STATUS_EXISTS",
        12 => c"TP_STATUS_MISSING_BASE",
        31 => c"TP_STATUS_OTHER",
        32 => c"TP_STATUS_NULL_POINTER",
        33 => c"TP_STATUS_BAD_UTF8",
        34 => c"TP_STATUS_WRONG_LENGTH",
        35 => c"TP_STATUS_BUFFER_TOO_SMALL",
        36 => c"TP_STATUS_MISALIGNED",
        37 => c"TP_STATUS_OVERLAP",
        38 => c"TP_STATUS_CLOSED",
        39 => c"TP_STATUS_BUSY",
        40 => c"TP_STATUS_PANIC",
        _ => c"unknown",
    };
    name.as_ptr()
}

/// The version of this library, as "0.1.0": a text that is always there.
#[unsafe(no_mangle)]
pub extern "C" fn tp_version() -> *const c_char {
    const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\0");
    VERSION.as_ptr().cast()
}

#[cfg(test)]
mod tests {
    use std::ffi::CStr;
    use std::mem::MaybeUninit;

    use super::*;

    /// What C sees of `work`.
    fn seen(work: impl FnOnce() -> Outcome) -> (tp_status, String) {
        let mut error = MaybeUninit::<tp_error>::uninit();
        // SAFETY: `error` is ours, and `guard` has written status and text when it returns.
        unsafe {
            let status = guard(error.as_mut_ptr(), work);
            assert_eq!((*error.as_ptr()).status, status);
            let text = CStr::from_ptr((&raw const (*error.as_ptr()).message).cast());
            (status, text.to_str().unwrap().to_owned())
        }
    }

    #[test]
    fn a_panic_is_a_status() {
        let (status, message) = seen(|| panic!("number {}", 7));
        assert_eq!(
            (status, message.as_str()),
            (tp_status::Panic, "a fault of tensorpress: number 7")
        );
        assert_eq!(seen(|| panic!("plain")).1, "a fault of tensorpress: plain");
        assert_eq!(seen(|| std::panic::panic_any(3)).1, "a fault of tensorpress: of no words");
        // SAFETY: null is allowed.
        assert_eq!(unsafe { guard(std::ptr::null_mut(), || panic!()) }, tp_status::Panic);
    }

    #[test]
    fn long_messages_are_cut_between_characters() {
        let fail = |message: String| Err(Failure::new(tp_status::Io, message));
        let whole = "x".repeat(TP_MESSAGE_BYTES - 1);
        assert_eq!(seen(|| fail(whole.clone())), (tp_status::Io, whole.clone()));
        assert_eq!(seen(|| fail(format!("{whole}y"))).1, whole);
        let odd = format!("{}é", &whole[1..]);
        assert_eq!(seen(|| fail(odd)).1, whole[1..]);
        assert_eq!(seen(|| Ok(())), (tp_status::Ok, String::new()));
    }

    #[test]
    fn kinds_have_statuses_of_their_own() {
        let kinds = [
            ErrorKind::InvalidArgument,
            ErrorKind::ShapeMismatch,
            ErrorKind::MissingCalibration,
            ErrorKind::Unsupported,
            ErrorKind::Numerical,
            ErrorKind::Corruption,
            ErrorKind::InsufficientData,
            ErrorKind::Version,
            ErrorKind::Io,
            ErrorKind::Interrupted,
            ErrorKind::Exists,
            ErrorKind::MissingBase,
        ];
        for (number, kind) in (1..).zip(kinds) {
            let failure = Failure::from(press::Error::new(kind, "why"));
            assert_eq!((failure.status as i32, failure.message.as_str()), (number, "why"));
            // SAFETY: names are texts that are always there.
            let name = unsafe { CStr::from_ptr(tp_status_name(number)) }.to_str().unwrap();
            let name = name.strip_prefix("TP_STATUS_").unwrap().replace('_', "");
            assert!(name.eq_ignore_ascii_case(&format!("{kind:?}")), "{number}: {name}");
        }
    }
}
