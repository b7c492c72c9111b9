//! Which of the known words a person may have meant.

/// Most letters that may be wrong; of short words fewer, or anything would be near.
const DISTANCE_MAX: usize = 2;

/// The known word nearest to `text`, upper and lower case being the same; `None` if none is near.
pub fn nearest<'a>(text: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let text = text.to_ascii_lowercase();
    let near = known.into_iter().map(|word| (distance(&text, &word.to_ascii_lowercase()), word));
    let near = near.filter(|(distance, word)| *distance <= DISTANCE_MAX.min(word.chars().count() / 2));
    near.min_by_key(|(distance, _)| *distance).map(|(_, word)| word)
}

/// Letters to insert, leave out, change, or swap with the next one (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    rows[0] = (0..=b.len()).collect();
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let change = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = change.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = best;
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_near_and_another_word_is_not() {
        let known = ["serial", "wwn", "model", "bus", "min", "max", "by-id"];
        for (text, meant) in [
            ("serail", Some("serial")),
            ("SERIAL", Some("serial")),
            ("modle", Some("model")),
            ("mni", Some("min")),
            ("byid", Some("by-id")),
            ("colour", None),
            ("", None),
            ("x", None),
            ("é", None),
        ] {
            assert_eq!(nearest(text, known), meant, "{text}");
        }
    }
}
