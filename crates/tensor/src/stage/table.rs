use super::row::{Part, Row};
use crate::error::{Error, Result};

/// A recipe with a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Preset {
    /// Its name, which stands for the line.
    pub name: &'static str,
    /// The recipe.
    pub line: &'static str,
    /// When to use it.
    pub about: &'static str,
}

/// The stages of a room, and its presets.
#[derive(Debug)]
pub struct Stages<P: Part> {
    rows: Vec<Row<P>>,
    presets: Vec<Preset>,
    planned: Vec<&'static str>,
}

impl<P: Part> Clone for Stages<P> {
    fn clone(&self) -> Self {
        Self {
            rows: self.rows.clone(),
            presets: self.presets.clone(),
            planned: self.planned.clone(),
        }
    }
}

impl<P: Part> Default for Stages<P> {
    fn default() -> Self {
        Self { rows: Vec::new(), presets: Vec::new(), planned: Vec::new() }
    }
}

impl<P: Part> Stages<P> {
    /// Adds a stage.
    ///
    /// # Errors
    /// `InvalidArgument` if its name is taken, or cannot be read from a recipe.
    pub fn add(&mut self, row: Row<P>) -> Result<()> {
        self.check_name(row.name())?;
        self.rows.push(row);
        Ok(())
    }

    /// Adds stages.
    ///
    /// # Errors
    /// As [`Stages::add`].
    pub fn extend(&mut self, rows: impl IntoIterator<Item = Row<P>>) -> Result<()> {
        rows.into_iter().try_for_each(|row| self.add(row))
    }

    /// Adds a preset.
    ///
    /// # Errors
    /// As [`Stages::add`].
    pub fn add_preset(&mut self, preset: Preset) -> Result<()> {
        self.check_name(preset.name)?;
        self.presets.push(preset);
        Ok(())
    }

    /// Names that a later version will have, so that an error can say so; they may be taken.
    pub fn plan(&mut self, names: &[&'static str]) {
        self.planned.extend_from_slice(names);
    }

    fn check_name(&self, name: &str) -> Result<()> {
        if name.is_empty() || !name.chars().all(super::line::is_bare) {
            let message = format!("stage `{name}`: allowed are letters, digits, `_`, `.` and `-`");
            return Err(Error::invalid(message));
        }
        let taken = self.rows.iter().any(|row| row.name() == name) || self.preset(name).is_some();
        match taken {
            true => Err(Error::invalid(format!("stage `{name}`: the name is taken"))),
            false => Ok(()),
        }
    }

    /// All stages, in the order in which they were added.
    #[must_use]
    pub fn rows(&self) -> &[Row<P>] {
        &self.rows
    }

    /// All presets.
    #[must_use]
    pub fn presets(&self) -> &[Preset] {
        &self.presets
    }

    /// The preset of a name.
    #[must_use]
    pub fn preset(&self, name: &str) -> Option<&Preset> {
        self.presets.iter().find(|preset| preset.name == name)
    }

    /// The stage of a name.
    ///
    /// # Errors
    /// `InvalidArgument`, saying which there are; `Unsupported` for one that is planned.
    pub fn find(&self, name: &str) -> Result<&Row<P>> {
        if let Some(row) = self.rows.iter().find(|row| row.name() == name) {
            return Ok(row);
        }
        let known: Vec<&str> = self.rows.iter().map(Row::name).collect();
        if self.planned.contains(&name) {
            return Err(Error::unsupported(format!(
                "stage `{name}` is planned, but not in this version; allowed are {}",
                known.join(", ")
            )));
        }
        let presets: Vec<&str> = self.presets.iter().map(|p| p.name).collect();
        let presets = match presets.is_empty() {
            true => String::new(),
            false => format!(" (and the presets {})", presets.join(", ")),
        };
        let known = known.join(", ");
        Err(Error::invalid(format!("unknown stage `{name}`; allowed are {known}{presets}")))
    }

    /// Names of the stages of some roles, for errors.
    #[must_use]
    pub fn names_of(&self, roles: &[P::Role]) -> String {
        let named = self.rows.iter().filter(|row| roles.contains(&row.role()));
        named.map(Row::name).collect::<Vec<_>>().join(", ")
    }
}
