//! Two names exchanged in one step, which std has no call for.
#![allow(unsafe_code)]

use std::io;
use std::path::Path;

/// Exchanges what two names stand for, or tells that this system, or file system, cannot.
///
/// # Errors
/// Those of the system.
#[cfg(any(target_os = "linux", target_os = "android", target_vendor = "apple"))]
pub(super) fn exchange(a: &Path, b: &Path) -> io::Result<bool> {
    use std::ffi::CString;
    use std::os::unix::ffi::OsStrExt;

    let path = |path: &Path| CString::new(path.as_os_str().as_bytes());
    let (a, b) = (path(a)?, path(b)?);
    #[cfg(any(target_os = "linux", target_os = "android"))]
    // SAFETY: both paths are strings that end with NUL and live until the call returns, which keeps neither.
    let done = unsafe {
        let here = libc::AT_FDCWD;
        let (a, b) = (a.as_ptr(), b.as_ptr());
        libc::syscall(libc::SYS_renameat2, here, a, here, b, libc::RENAME_EXCHANGE)
    };
    #[cfg(target_vendor = "apple")]
    // SAFETY: as above.
    let done = unsafe { libc::renamex_np(a.as_ptr(), b.as_ptr(), libc::RENAME_SWAP) };
    if done == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EINVAL | libc::ENOSYS | libc::ENOTSUP) => Ok(false),
        _ => Err(error),
    }
}

/// There is no such call here.
#[cfg(not(any(target_os = "linux", target_os = "android", target_vendor = "apple")))]
pub(super) fn exchange(_: &Path, _: &Path) -> io::Result<bool> {
    Ok(false)
}
