//! Ctrl-C and SIGTERM: work that writes is told to stop, and leaves nothing or what can be resumed.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

/// True once somebody asks to stop; asked twice, the program ends at once.
pub(crate) fn asked() -> Arc<AtomicBool> {
    let asked = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // The shutdown first: it is to see what was asked before. Where a signal cannot be had, it does what it always did.
        let _ = flag::register_conditional_shutdown(signal, 128 + signal, asked.clone());
        let _ = flag::register(signal, asked.clone());
    }
    asked
}

/// What was to be written is: from now on, whoever asks once ends the program. Whether somebody asked already, too late
/// for the work to see.
pub(crate) fn no_more(asked: &AtomicBool) -> bool {
    asked.swap(true, Ordering::Relaxed)
}

/// Whether to go on.
pub(crate) fn go_on(asked: &AtomicBool) -> ControlFlow<()> {
    match asked.load(Ordering::Relaxed) {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    }
}
