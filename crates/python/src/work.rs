//! Work without the interpreter's lock: other Python threads go on, and Ctrl-C is heard.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use pyo3::prelude::*;
use serde_json::Value;
use tensorpress::Error;

use crate::error::{Failure, caught, words};
use crate::json::to_python;

/// Runs work that cannot be stopped: a signal is handled when it is done.
pub(crate) fn run<T: Send>(
    py: Python<'_>,
    work: impl FnOnce() -> tensorpress::Result<T> + Send,
) -> PyResult<T> {
    py.detach(|| caught(work)).map_err(PyErr::from)
}

/// How often signals are looked at.
const LOOK: Duration = Duration::from_millis(20);

/// The main thread's, on most systems: what is nested deep enough for it is so here.
const STACK: usize = 8 << 20;

/// What happened, and who waits until it was told.
struct Told {
    event: Value,
    heard: Sender<()>,
}

/// The other end of the work: whether to stop, and whom to tell.
pub(crate) struct Watch {
    asked: Arc<AtomicBool>,
    tell: Option<Sender<Told>>,
}

impl Watch {
    /// True once the work shall stop.
    pub(crate) fn cancel(&self) -> Arc<AtomicBool> {
        self.asked.clone()
    }

    /// Tells the caller's function, and waits for it.
    pub(crate) fn tell(&self, event: impl FnOnce() -> Value) {
        let Some(tell) = &self.tell else { return };
        let (heard, waits) = channel();
        if tell.send(Told { event: event(), heard }).is_ok() {
            let _ = waits.recv();
        }
    }

    /// Whether to go on.
    pub(crate) fn go_on(&self) -> ControlFlow<()> {
        match self.asked.load(Ordering::Relaxed) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }

    /// An error, if the work shall stop.
    pub(crate) fn check(&self) -> tensorpress::Result<()> {
        match self.go_on() {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::interrupted("stopped as asked")),
        }
    }
}

/// Runs long work on a thread of its own. This thread calls `progress` with what the work tells, and runs Python's
/// handlers of signals; where either raises, the work is asked to stop, and what was raised is raised once it has.
pub(crate) fn watched<T: Send>(
    py: Python<'_>,
    progress: Option<Py<PyAny>>,
    work: impl FnOnce(&Watch) -> tensorpress::Result<T> + Send,
) -> PyResult<T> {
    let asked = Arc::new(AtomicBool::new(false));
    let (send, receive) = channel();
    // Without a progress nobody sends; the sender still ends with the work.
    let (done, ended) = channel::<()>();
    let watch = Watch { asked: asked.clone(), tell: progress.is_some().then_some(send) };
    let progress = progress.as_ref();
    let (raised, result) = py.detach(move || {
        thread::scope(|scope| {
            let work = move || {
                let _done = done;
                caught(|| work(&watch))
            };
            let worker = match thread::Builder::new().stack_size(STACK).spawn_scoped(scope, work) {
                Ok(worker) => worker,
                Err(error) => {
                    return (None, Err(Error::io("start a thread", "", error).into()));
                }
            };
            let raised = match progress {
                Some(progress) => listen(progress, &receive, &asked),
                None => wait(&ended, &asked),
            };
            let result = worker.join().unwrap_or_else(|e| Err(Failure::Panic(words(&*e))));
            (raised, result)
        })
    });
    match (raised, result) {
        // Whatever came of the work: what was raised must not be lost, unless there is a defect to hear of.
        (_, Err(Failure::Panic(message))) => Err(Failure::Panic(message).into()),
        (Some(raised), _) => Err(raised),
        (None, result) => result.map_err(PyErr::from),
    }
}

/// Notes the first exception, and asks the work to stop.
fn note(raised: &mut Option<PyErr>, result: PyResult<()>, asked: &AtomicBool) {
    if let Err(error) = result {
        asked.store(true, Ordering::Relaxed);
        raised.get_or_insert(error);
    }
}

fn listen(progress: &Py<PyAny>, receive: &Receiver<Told>, asked: &AtomicBool) -> Option<PyErr> {
    let mut raised = None;
    loop {
        let told = match receive.recv_timeout(LOOK) {
            Ok(told) => Some(told),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return raised,
        };
        let result = Python::attach(|py| {
            if let Some(told) = told.as_ref().filter(|_| raised.is_none()) {
                progress.call1(py, (to_python(py, &told.event)?,))?;
            }
            py.check_signals()
        });
        note(&mut raised, result, asked);
        if let Some(told) = told {
            // The work has ended if nobody waits.
            let _ = told.heard.send(());
        }
    }
}

fn wait(ended: &Receiver<()>, asked: &AtomicBool) -> Option<PyErr> {
    let mut raised = None;
    while let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(LOOK) {
        note(&mut raised, Python::attach(|py| py.check_signals()), asked);
    }
    raised
}
