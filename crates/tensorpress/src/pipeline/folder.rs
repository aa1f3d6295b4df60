//! The folder of unfinished work.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use tensorpress_model::Source;
use tensorpress_tensor::checkpoint::{
    find_foreign, refuse_mount_point, remove_files, remove_listed, stays_inside,
};
use tensorpress_tensor::rate::RateCurve;
use tensorpress_tensor::{Checkpoint, Error, ErrorKind, Result};

use super::listing::{LIST, is_of_model, is_of_work, owned};
use super::mix::{Attempt, Measured};
use super::rewrite::stored;
use super::state::{Identity, STATE, State, Steps, Stored, Unit};

/// Held by who works in a folder.
pub(super) const LOCK: &str = "tensorpress.lock";
/// What the names of the files of rewrites begin with.
pub(super) const REWRITE: &str = "tensorpress.rewrite-";
/// What the names of the files of a backward pass begin with.
pub(super) const BACKWARD: &str = "tensorpress.backward-";
/// What the names of shards begin with that are written anew.
pub(super) const REGROUPED: &str = "tensorpress.shard-";

/// Where the work on `out` lies until it is done.
#[must_use]
pub fn partial_of(out: &Path) -> PathBuf {
    let mut name = out.file_name().unwrap_or_default().to_owned();
    name.push(".partial");
    out.with_file_name(name)
}

/// Where the work on another format of what is finished in [`partial_of`] `out` lies.
pub(super) fn converting(out: &Path) -> PathBuf {
    let mut name = out.file_name().unwrap_or_default().to_owned();
    name.push(".format");
    partial_of(&out.with_file_name(name))
}

/// Whether a result may go to `out`: what is read does not lie there.
pub(super) fn check_target(out: &Path, source: &Source, force: bool) -> Result<()> {
    if out.file_name().is_none() {
        return Err(Error::invalid("is no name for a new folder").in_file(out));
    }
    let Ok(found) = fs::symlink_metadata(out) else { return Ok(()) };
    refuse_mount_point(out)?;
    if !force {
        return Err(Error::exists("exists already").in_file(out));
    }
    if !found.is_dir() {
        return Err(Error::invalid("exists and is no folder").in_file(out));
    }
    let real = |path: &Path| path.canonicalize().ok();
    let target = real(out);
    let lies_there = |path: &Path| {
        real(path).zip(target.as_ref()).is_some_and(|(path, target)| path.starts_with(target))
    };
    if source.folder().into_iter().chain(source.checkpoint().files()).any(lies_there) {
        let same = source.folder().is_some_and(|folder| real(folder) == target);
        let what = if same { "is" } else { "holds" };
        let message = format!("{what} the model to compress; write elsewhere");
        return Err(Error::invalid(message).in_file(out));
    }
    owned(out).map(drop)
}

/// What a rewrite keeps; of a block, or of all.
#[derive(Debug, Clone, Copy)]
pub(super) enum Step {
    Judgement(usize),
    Decisions,
    Edit(usize),
    Head,
    /// Found while blocks are judged, and not kept.
    Gradients(usize),
}

/// The folder of unfinished work and its state.
#[derive(Debug)]
pub(super) struct Work {
    folder: PathBuf,
    state: State,
    shards: usize,
    /// What is worked on: nothing is noted that was made of something else.
    checkpoint: Checkpoint,
    /// Held as long as this process works here.
    lock: Option<File>,
}

impl Work {
    /// Begins work on `checkpoint` in a folder, or takes up what an earlier run has left there.
    pub(super) fn open(
        folder: PathBuf,
        identity: Identity,
        checkpoint: &Checkpoint,
        force: bool,
    ) -> Result<Self> {
        if fs::symlink_metadata(&folder).is_ok_and(|found| !found.is_dir()) {
            return Err(Error::invalid("is in the way: it is no folder").in_file(&folder));
        }
        refuse_mount_point(&folder)?;
        let lock = lock(&folder)?;
        let path = folder.join(STATE);
        let found = path.exists().then(|| resume(&path, &identity)).transpose();
        let state = match found {
            Ok(Some(state)) => state,
            Ok(None) if force || is_fresh(&folder)? => fresh(&folder, identity)?,
            Ok(None) => {
                let message = format!("holds files, but no {STATE}: it is not replaced unasked");
                return Err(Error::exists(message).in_file(&folder));
            }
            Err(_) if force => fresh(&folder, identity)?,
            Err(error) => return Err(error),
        };
        let checkpoint = checkpoint.clone();
        let mut work = Self { folder, state, shards: 0, checkpoint, lock: Some(lock) };
        work.drop_damaged_steps();
        work.write()?;
        Ok(work)
    }

    /// Steps of rewrites whose files are not what the state says are made again, and all after them.
    fn drop_damaged_steps(&mut self) {
        let mut rewrites = std::mem::take(&mut self.state.rewrites);
        for (index, steps) in rewrites.iter_mut().enumerate() {
            let same = |step: Step, file: &Stored| {
                stored(&self.step(index, step)).is_ok_and(|found| found == *file)
            };
            let whole = |step: fn(usize) -> Step, files: &[Stored]| {
                let files = files.iter().enumerate();
                files.take_while(|(block, file)| same(step(*block), file)).count()
            };
            let judged = whole(Step::Judgement, &steps.judged);
            if judged < steps.judged.len() {
                steps.decisions = None;
            }
            steps.judged.truncate(judged);
            steps.decisions.take_if(|file| !same(Step::Decisions, file));
            let edits = if steps.decisions.is_some() { whole(Step::Edit, &steps.edits) } else { 0 };
            let mut good = steps.decisions.is_some() && edits == steps.edits.len();
            steps.edits.truncate(edits);
            if steps.head.take_if(|file| !good || !same(Step::Head, file)).is_some() {
                good = false;
            }
            if !good {
                self.state.units.clear();
                rewrites.truncate(index + 1);
                break;
            }
        }
        self.state.rewrites = rewrites;
    }

    /// Begins the shards of a model of this many blocks. Those that are not what the state says are made again, and all
    /// after them.
    pub(super) fn begin(&mut self, blocks: usize) -> Result<()> {
        self.shards = blocks + 1;
        let whole = |(index, unit): &(usize, &Unit)| {
            Checkpoint::open(self.shard(*index)).is_ok_and(|shard| shard.file_bytes() == unit.bytes)
        };
        let good = self.state.units.iter().enumerate().take_while(whole).count();
        self.state.units.truncate(good.min(self.shards));
        self.write()
    }

    fn write(&self) -> Result<()> {
        self.checkpoint.check_unmoved()?;
        self.state.write(&self.folder.join(STATE))
    }

    /// How far a rewrite has come, if it was begun.
    pub(super) fn rewrite(&self, index: usize) -> Option<&Steps> {
        self.state.rewrites.get(index)
    }

    /// Path of what a rewrite keeps.
    pub(super) fn step(&self, rewrite: usize, step: Step) -> PathBuf {
        let name = match step {
            Step::Judgement(block) => format!("judged-{block:05}"),
            Step::Decisions => "decisions".to_owned(),
            Step::Edit(block) => format!("edit-{block:05}"),
            Step::Head => "head".to_owned(),
            Step::Gradients(number) => format!("gradients-{number:05}"),
        };
        // No name that a reader of the finished folder would look at, should it be left there.
        self.folder.join(format!("{REWRITE}{rewrite}.{name}"))
    }

    fn steps(&mut self, index: usize) -> &mut Steps {
        let all = &mut self.state.rewrites;
        all.resize_with(all.len().max(index + 1), Steps::default);
        &mut all[index]
    }

    /// Notes that a rewrite has judged its next block.
    pub(super) fn judged(&mut self, rewrite: usize, file: Stored) -> Result<()> {
        self.steps(rewrite).judged.push(file);
        self.write()
    }

    /// Notes what a rewrite has decided.
    pub(super) fn decided(&mut self, rewrite: usize, file: Stored) -> Result<()> {
        self.steps(rewrite).decisions = Some(file);
        self.write()
    }

    /// Notes that the edit of the next block is made.
    pub(super) fn edited(&mut self, rewrite: usize, file: Stored) -> Result<()> {
        self.steps(rewrite).edits.push(file);
        self.write()
    }

    /// Notes that the edit of the head is made.
    pub(super) fn edited_head(&mut self, rewrite: usize, file: Stored) -> Result<()> {
        self.steps(rewrite).head = Some(file);
        self.write()
    }

    /// Path of what a backward pass finds of a block.
    pub(super) fn gradients(&self, block: usize) -> PathBuf {
        self.folder.join(format!("{BACKWARD}{block:05}"))
    }

    /// Path of what a backward pass keeps while it runs.
    pub(super) fn hidden_states(&self) -> PathBuf {
        self.folder.join(format!("{BACKWARD}states"))
    }

    /// The file of a block that a backward pass is done with is there, and what the state says.
    pub(super) fn has_gradients(&self, block: usize) -> bool {
        let same = |file: &Stored| stored(&self.gradients(block)).is_ok_and(|found| found == *file);
        self.state.gradients.get(&block).is_some_and(same)
    }

    /// Notes that a backward pass is done with a block.
    pub(super) fn found_gradients(&mut self, block: usize, file: Stored) -> Result<()> {
        self.state.gradients.insert(block, file);
        self.write()
    }

    /// Bits of the matrices of each block by the step, as far as that is known.
    pub(super) fn rates(&self) -> &BTreeMap<usize, BTreeMap<String, RateCurve>> {
        &self.state.rates
    }

    /// Notes those of a block.
    pub(super) fn found_rates(
        &mut self,
        block: usize,
        rates: BTreeMap<String, RateCurve>,
    ) -> Result<()> {
        self.state.rates.insert(block, rates);
        self.write()
    }

    /// What matrices of each block take and lose at levels of a mix, as far as that is known.
    pub(super) fn measured(&self) -> &BTreeMap<usize, BTreeMap<String, Measured>> {
        &self.state.measured
    }

    /// Notes that of a block.
    pub(super) fn found_measured(
        &mut self,
        block: usize,
        found: BTreeMap<String, Measured>,
    ) -> Result<()> {
        self.state.measured.insert(block, found);
        self.write()
    }

    /// Models that were made and judged.
    pub(super) fn attempts(&self) -> &[Attempt] {
        &self.state.attempts
    }

    /// Notes one; unless it is the result, its shards are to be made again, of the size that is next if that is known.
    pub(super) fn tried(
        &mut self,
        attempt: Attempt,
        settled: bool,
        size: Option<u64>,
    ) -> Result<()> {
        self.state.attempts.push(attempt);
        self.state.settled = settled;
        self.state.size = size;
        if !settled {
            self.state.units.clear();
        }
        self.write()
    }

    /// What a judgement has said of the size that is being made.
    pub(super) fn size(&self) -> Option<u64> {
        self.state.size
    }

    /// What there is to say of what was found.
    pub(super) fn notes(&self) -> &[String] {
        &self.state.notes
    }

    /// Notes what there is to say, once.
    pub(super) fn say(&mut self, note: String) -> Result<()> {
        if self.state.notes.contains(&note) {
            return Ok(());
        }
        self.state.notes.push(note);
        self.write()
    }

    /// The last attempt is the result.
    pub(super) fn is_settled(&self) -> bool {
        self.state.settled
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Finished shards, in order.
    pub(super) fn units(&self) -> &[Unit] {
        &self.state.units
    }

    /// Every shard is finished.
    pub(super) fn is_complete(&self) -> bool {
        self.state.units.len() == self.shards
    }

    pub(super) fn shards(&self) -> usize {
        self.shards
    }

    /// Path of a shard: number 0 has what lies outside the blocks.
    pub(super) fn shard(&self, index: usize) -> PathBuf {
        self.folder.join(format!("model-{:05}-of-{:05}.safetensors", index + 1, self.shards))
    }

    /// Notes that the next shard is finished.
    pub(super) fn finished(&mut self, unit: Unit) -> Result<()> {
        self.state.units.push(unit);
        self.write()
    }

    /// Notes that the next units are finished.
    #[cfg(feature = "formats")]
    pub(super) fn finished_all(&mut self, units: Vec<Unit>) -> Result<()> {
        self.state.units.extend(units);
        self.write()
    }

    /// Takes units for unfinished, but for the first ones.
    #[cfg(feature = "formats")]
    pub(super) fn forget(&mut self, kept: usize) -> Result<()> {
        self.state.units.truncate(kept);
        self.write()
    }

    /// Path of a shard that is written anew.
    #[cfg(feature = "formats")]
    pub(super) fn regrouped(&self, index: usize) -> PathBuf {
        self.folder.join(format!("{REGROUPED}{index:05}"))
    }

    /// Puts so many shards that were written anew in the place of all. A crash in between leaves work that begins anew.
    #[cfg(feature = "formats")]
    pub(super) fn regroup(&mut self, count: usize) -> Result<()> {
        self.forget(0)?;
        for index in 0..self.shards {
            let path = self.shard(index);
            fs::remove_file(&path).map_err(|e| Error::io("remove the file", path, e))?;
        }
        self.shards = count;
        for index in 0..count {
            let (from, to) = (self.regrouped(index), self.shard(index));
            fs::rename(from, &to).map_err(|e| Error::io("name the file", to, e))?;
        }
        Ok(())
    }

    /// Removes the folder, whose result has its name elsewhere.
    pub(super) fn discard(&mut self) -> Result<()> {
        clear(&self.folder)?;
        drop(self.lock.take().filter(|_| cfg!(windows)));
        remove_listed(&self.folder, &[LOCK.to_owned()])
    }

    /// Notes what of the model goes along as it is. What went along before and does not any more is removed.
    pub(super) fn copies(&mut self, names: Vec<String>) -> Result<()> {
        let mut gone = self.state.copied.clone();
        gone.retain(|name| !names.contains(name));
        remove_files(&self.folder, &gone)?;
        self.state.copied = names;
        self.write()
    }

    /// Gives the folder up: what is left to remove are these files. The lock is to be held until then, but where a
    /// folder cannot be renamed with an open file in it.
    pub(super) fn close(&mut self) -> (Vec<String>, Option<File>) {
        let listing = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let names = listing.map(|entry| entry.file_name().to_string_lossy().into_owned());
        let mut leftovers: Vec<String> = names.filter(|name| is_of_work(name)).collect();
        // No crash may leave work without its state.
        leftovers.sort_by_key(|name| name != STATE);
        (leftovers, self.lock.take().filter(|_| !cfg!(windows)))
    }

    /// Whether this error leaves something that is worth taking up again: what is wrong with the model or the recipe is
    /// as wrong the next time, and another recipe begins anew.
    fn outlives(error: &Error) -> bool {
        matches!(error.kind(), ErrorKind::Io | ErrorKind::Interrupted | ErrorKind::Exists)
    }

    /// Passes on how the work went. Where an error ends it for good, nothing is left behind.
    pub(super) fn ended<T>(&mut self, done: Result<T>) -> Result<T> {
        // An input that was written to explains whatever went wrong.
        let done = done.or_else(|error| self.checkpoint.check_unmoved().and(Err(error)));
        let held = self.lock.is_some();
        if held && done.as_ref().is_err_and(|error| !Self::outlives(error)) {
            // The error that matters is the first one.
            let _ = clear(&self.folder);
            let _ = remove_listed(&self.folder, &[LOCK.to_owned()]);
        }
        done
    }
}

fn resume(path: &Path, identity: &Identity) -> Result<State> {
    let state = State::read(path)?;
    match state.identity.difference(identity) {
        None => Ok(state),
        Some(difference) => {
            let folder = path.parent().unwrap_or(path);
            Err(Error::exists(format!(
                "holds unfinished work of another kind: {difference}. Run that again to finish it; it is not replaced \
                 unasked"
            ))
            .in_file(folder))
        }
    }
}

/// Whether the folder has nothing but what the first moments of a run leave.
fn is_fresh(folder: &Path) -> Result<bool> {
    Ok(find_foreign(folder, &mut |name| Ok(is_of_work(name)))?.is_none())
}

/// A new state, and nothing of old work beside it.
fn fresh(folder: &Path, identity: Identity) -> Result<State> {
    let files = ours(folder)?;
    let mut state = State {
        identity,
        rewrites: Vec::new(),
        gradients: BTreeMap::new(),
        rates: BTreeMap::new(),
        measured: BTreeMap::new(),
        attempts: Vec::new(),
        settled: false,
        size: None,
        notes: Vec::new(),
        units: Vec::new(),
        copied: Vec::new(),
    };
    if !files.is_empty() {
        // Whatever stops the removal: what is left is known to be ours by the new state.
        let known = |name: &String| is_of_work(name) || is_of_model(name);
        state.copied = files.iter().filter(|name| !known(name)).cloned().collect();
        state.write(&folder.join(STATE))?;
        remove_files(folder, &files)?;
        state.copied.clear();
    }
    Ok(state)
}

/// Removes what is ours, which must be all there is but for the lock.
fn clear(folder: &Path) -> Result<()> {
    let mut files = ours(folder)?;
    // No crash may leave files that nothing says of whose they are.
    files.push(STATE.to_owned());
    remove_files(folder, &files)
}

/// The files of a folder but for lock and state, all of which must be ours: unfinished work, or a folder that was replaced
/// when a kill came before it was removed. What says so of the others comes last.
fn ours(folder: &Path) -> Result<Vec<String>> {
    let path = folder.join(STATE);
    let state = State::read(&path).ok();
    let copied = state.map(|state| state.copied).unwrap_or_default();
    remove_empty(folder, &copied);
    let mut files = Vec::new();
    let of_work = find_foreign(folder, &mut |name| {
        files.push(name.to_owned());
        Ok(is_of_work(name) || is_of_model(name) || copied.iter().any(|copied| copied == name))
    })?;
    if let Some(name) = of_work {
        let Ok(of_list) = owned(folder) else {
            let message = format!("holds `{name}`, which is not ours: not replaced");
            return Err(Error::invalid(message).in_file(folder));
        };
        files = of_list;
    }
    files.retain(|name| name != LOCK && name != STATE);
    files.sort_by_key(|name| name == LIST);
    Ok(files)
}

/// Removes the folders of these files that are empty: a kill came before the first file.
fn remove_empty(folder: &Path, files: &[String]) {
    let inside = files.iter().filter(|name| stays_inside(name));
    let parents = |name: &String| name.match_indices('/').map(|(at, _)| at).collect::<Vec<_>>();
    let mut inner: Vec<&str> =
        inside.flat_map(|name| parents(name).into_iter().map(|at| &name[..at])).collect();
    inner.sort_unstable();
    // Deepest first.
    inner.iter().rev().for_each(|inner| drop(fs::remove_dir(folder.join(inner))));
}

/// Makes the folder, if it is not there, and holds it for this process.
pub(super) fn lock(folder: &Path) -> Result<File> {
    let path = folder.join(LOCK);
    for _ in 0..100 {
        fs::create_dir_all(folder).map_err(|e| Error::io("create the folder", folder, e))?;
        let file = match File::create(&path) {
            Ok(file) => file,
            // Renamed between the two calls: its work is finished.
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(Error::io("create the lock", &path, e)),
        };
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => {
                return Err(Error::invalid("another process is at work here").in_file(folder));
            }
            // Some file systems have no locks; work goes on without.
            Ok(()) | Err(TryLockError::Error(_)) if path.exists() => return Ok(file),
            _ => {}
        }
    }
    Err(Error::invalid("another process is at work here").in_file(folder))
}
