//! What the head reads: of a model, of a model without one of its blocks; and the edits that follow from that.

use tensorpress_model::Source;
use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::ndarray::{Array2, ArrayView2};
use tensorpress_tensor::rewrite::{Edit, HeadView, Outputs};
use tensorpress_tensor::{Error, Result, Scratch};

use super::super::advance::Stream;
use super::super::folder::Step;
use super::{One, Rewriting, store};

impl Rewriting<'_> {
    /// What the head of a decoder reads of the calibration tokens, `[tokens, width]`.
    pub(super) fn outputs(&self, source: &Source) -> Result<Array2<f32>> {
        source.need_head()?;
        let mut stream = Stream::begin(source, 0, self.samples, None, false)?;
        self.pass_all(source, 0, &mut stream)?;
        read(source, stream.hidden())
    }

    /// The same without a block, of the hidden states before it.
    pub(super) fn without(
        &self,
        source: &Source,
        block: usize,
        before: &Stream,
    ) -> Result<Array2<f32>> {
        let mut stream = before.fork();
        self.pass_all(source, block + 1, &mut stream)?;
        read(source, stream.hidden())
    }

    fn pass_all(&self, source: &Source, first: usize, stream: &mut Stream) -> Result<()> {
        for block in first..source.blocks() {
            super::super::check_cancelled(self.cancel)?;
            stream.pass(&source.block(block)?)?;
            source.checkpoint().release();
        }
        Ok(())
    }

    /// The edit of the head of `after`, which has the edits of all blocks; `original` is the model before all rewrites.
    pub(super) fn edit_head(
        &mut self,
        one: &One<'_>,
        original: &Source,
        after: &Source,
    ) -> Result<Edit> {
        let path = self.work.step(one.index, Step::Head);
        if self.done(one).is_none_or(|steps| steps.head.is_none()) {
            let model = after.layout(self.plain);
            let Some(layout) = &model.head else {
                let message = format!("`{}` changes the head: there is none", one.text);
                return Err(Error::unsupported(message));
            };
            let (reference, changed) = (self.outputs(original)?, self.outputs(after)?);
            let outputs = Outputs::new(reference.view(), changed.view());
            let head = HeadView::new(layout, after.checkpoint(), outputs);
            let edit = one.rewrite.edit_head(&model, &head)?;
            after.checkpoint().release();
            for (weight, note) in edit.notes() {
                self.work.say(format!("`{}`, {weight}: {note}", one.text))?;
            }
            let stored = store::write_edit(&path, &edit)?;
            self.work.edited_head(one.index, stored)?;
        }
        store::read_edit(&path)
    }
}

fn read(source: &Source, hidden: ArrayView2<'_, f32>) -> Result<Array2<f32>> {
    let read = source.head()?.input(hidden, &mut Scratch::new(Par::Rayon));
    source.checkpoint().release();
    read
}
