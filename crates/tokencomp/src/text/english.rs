//! What a few lists say of English words and questions.

/// Words that carry grammar.
const FUNCTION: &str = "a an the of in on at to for from by with into onto over under about after before between through during against within \
     without along across behind beside beneath above below off out up down as and or but nor so yet if then than that which \
     who whom whose what when where while because since until although though is are was were be been being am has have had \
     having do does did will would can could shall should may might must not no it its he she they them him her his their our \
     your my we you i this that these those there here such very just only also too even still again already";

const NUMBERS: &str = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen \
     nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million billion dozen half quarter third \
     first second";

/// Beginnings and parts of questions for a number, a date or a measure.
const QUANTITIES: [&str; 24] = [
    "how many",
    "how much",
    "how long",
    "how often",
    "how hot",
    "how cold",
    "how warm",
    "how wide",
    "how high",
    "how tall",
    "how old",
    "how far",
    "how deep",
    "how big",
    "how heavy",
    "how fast",
    "when ",
    "what time",
    "what day",
    "which day",
    "what size",
    "what score",
    "what depth",
    "what year",
];

/// What a question asks for, where its words say so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Number,
    Name,
}

pub(super) fn kind(question: &str) -> Option<Kind> {
    let question = question.trim().to_lowercase();
    let starts = |word: &str| question.starts_with(word);
    // `when` asks only at the beginning.
    let inside = |part: &&str| !part.ends_with(' ') && question.contains(*part);
    if starts("after how") || QUANTITIES.iter().any(|part| starts(part) || inside(part)) {
        Some(Kind::Number)
    } else if starts("who") || starts("where") {
        Some(Kind::Name)
    } else {
        None
    }
}

fn has(list: &str, word: &str) -> bool {
    list.split_whitespace().any(|other| other == word)
}

fn letters(word: &str) -> String {
    word.chars().filter(|c| c.is_alphanumeric() || *c == '_').flat_map(char::to_lowercase).collect()
}

pub(super) fn is_function(word: &str) -> bool {
    has(FUNCTION, &letters(word))
}

/// A word without its commonest endings.
pub(super) fn stem(word: &str) -> String {
    let word = letters(word);
    let stem = ["ing", "ed", "es", "s"].iter().find_map(|end| word.strip_suffix(end));
    stem.unwrap_or(&word).to_owned()
}

/// Digits, or a number in words.
pub(super) fn is_number(word: &str) -> bool {
    let lower = word.to_lowercase();
    let lower = lower.trim_matches(|c: char| c.is_ascii_punctuation());
    lower.contains(|c: char| c.is_ascii_digit()) || lower.split('-').any(|part| has(NUMBERS, part))
}

/// A capital that no beginning of a sentence explains, or that another follows.
pub(super) fn is_name(before: Option<&str>, word: &str, after: Option<&str>) -> bool {
    let capital = |word: &str| word.starts_with(char::is_uppercase);
    let first = before.is_none_or(|word| {
        word.trim_end_matches(['"', '\'', ')', '”', '’']).ends_with(['.', '!', '?'])
    });
    capital(word) && (!first || after.is_some_and(capital))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_and_words() {
        assert_eq!(kind("How many eggs?"), Some(Kind::Number));
        assert_eq!(kind("On which day is it shut?"), Some(Kind::Number));
        assert_eq!(kind("When was it?"), Some(Kind::Number));
        assert_eq!(kind("Who did it when it rained?"), Some(Kind::Name));
        assert_eq!(kind("Why?"), None);
        assert!(is_number("(4.5") && is_number("forty-two,") && !is_number("often"));
        assert!(is_name(Some("the"), "Oslo", None) && !is_name(Some("end."), "The", Some("mill")));
        assert!(
            is_name(None, "Ines", Some("Quaresma"))
                && is_function("The,")
                && stem("Boats") == stem("boat")
        );
    }
}
