//! What a person sees while a command works; all on standard error.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use indicatif::{ProgressBar, ProgressStyle};
use tensorpress::entropy::container::Progress as Progressed;
use tensorpress::pipeline::{Event, Progress};

use crate::interrupt::go_on;
use crate::output::say;

/// A bar over the blocks of a model.
pub(crate) struct Bar {
    bar: ProgressBar,
    fallbacks: usize,
}

impl Bar {
    pub(crate) fn new() -> Self {
        Self { bar: ProgressBar::no_length().with_style(style()), fallbacks: 0 }
    }
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template("{msg:>24} [{bar:30}] {pos}/{len} {elapsed_precise}")
        .expect("a valid template")
        .progress_chars("=> ")
}

impl Progress for Bar {
    fn event(&mut self, event: Event<'_>) {
        match event {
            Event::Begun { blocks, resumed } => {
                self.bar.set_length(blocks as u64);
                self.bar.set_position(resumed as u64);
                if resumed > 0 {
                    self.bar.suspend(|| say!("resuming: {resumed} of {blocks} blocks are done"));
                }
            }
            Event::Judged { stage, block, blocks } => {
                self.bar.set_length(blocks as u64);
                self.bar.set_position(block as u64);
                self.bar.set_message(format!("{stage}: judging block {block}"));
            }
            Event::Backward { done, steps } => {
                self.bar.set_length(steps as u64);
                self.bar.set_position(done as u64);
                self.bar.set_message("gradients");
            }
            Event::Rated { block, blocks } => {
                self.bar.set_length(blocks as u64);
                self.bar.set_position(block as u64);
                self.bar.set_message(format!("rates of block {block}"));
            }
            Event::Block { block, blocks } => {
                self.bar.set_length(blocks as u64);
                self.bar.set_position(block as u64);
                self.bar.set_message(format!("block {block}"));
            }
            Event::Layer(layer) => {
                if let Some(reason) = &layer.fallback {
                    self.fallbacks += 1;
                    self.bar.suspend(|| say!("{}: {reason}", layer.name));
                }
            }
            Event::Tried { bytes, divergence } => {
                self.bar.suspend(|| say!("tried: {bytes} bytes diverge by {divergence:.6}"));
            }
            Event::Finished => self.bar.finish_and_clear(),
            _ => {}
        }
    }
}

/// A bar over bytes, with the ratio so far and the time left, and what to tell it.
pub(crate) fn packing(
    what: &str,
    asked: Arc<AtomicBool>,
) -> (ProgressBar, impl FnMut(Progressed) -> ControlFlow<()> + Send) {
    let style = ProgressStyle::with_template(
        "{prefix:>10} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {msg}, {eta} left",
    );
    let style = style.expect("a valid template").progress_chars("=> ");
    let bar = ProgressBar::no_length().with_style(style).with_prefix(what.to_owned());
    let inner = bar.clone();
    let tell = move |progress: Progressed| {
        inner.set_length(progress.total);
        inner.set_position(progress.done);
        let ratio = 100.0 * progress.stored as f64 / progress.done.max(1) as f64;
        inner.set_message(format!("{ratio:.2} %"));
        go_on(&asked)
    };
    (bar, tell)
}

/// A bar over the sequences of a judgement; can be told from any thread.
pub(crate) fn judging(what: &str) -> (ProgressBar, impl Fn(usize, usize) + Sync) {
    let bar = ProgressBar::no_length().with_style(style());
    bar.set_message(what.to_owned());
    let inner = bar.clone();
    let tell = move |done: usize, of: usize| {
        inner.set_length(of as u64);
        inner.set_position(done as u64);
    };
    (bar, tell)
}
