//! Letters five rows high, for the words and numbers that are read across a room.

const ROWS: usize = 5;

/// The text in large letters, row by row; characters without a large form are left out.
pub fn large(text: &str) -> [String; ROWS] {
    let mut rows = [const { String::new() }; ROWS];
    for pattern in text.chars().filter_map(glyph) {
        for (row, bits) in rows.iter_mut().zip(pattern) {
            let cells = (0..5).rev().map(|bit| if bits >> bit & 1 == 1 { "##" } else { "  " });
            row.extend(cells.chain(["  "]));
        }
    }
    rows
}

/// Five rows of five cells, the leftmost in bit 4.
fn glyph(letter: char) -> Option<[u8; ROWS]> {
    Some(match letter {
        '0' => [0b01110, 0b10001, 0b10001, 0b10001, 0b01110],
        '1' => [0b00100, 0b01100, 0b00100, 0b00100, 0b01110],
        '2' => [0b11110, 0b00001, 0b01110, 0b10000, 0b11111],
        '3' => [0b11110, 0b00001, 0b01110, 0b00001, 0b11110],
        '4' => [0b10010, 0b10010, 0b11111, 0b00010, 0b00010],
        '5' => [0b11111, 0b10000, 0b11110, 0b00001, 0b11110],
        '6' => [0b01110, 0b10000, 0b11110, 0b10001, 0b01110],
        '7' => [0b11111, 0b00001, 0b00010, 0b00100, 0b00100],
        '8' => [0b01110, 0b10001, 0b01110, 0b10001, 0b01110],
        '9' => [0b01110, 0b10001, 0b01111, 0b00001, 0b01110],
        '%' => [0b11001, 0b11010, 0b00100, 0b01011, 0b10011],
        'A' => [0b01110, 0b10001, 0b11111, 0b10001, 0b10001],
        'D' => [0b11110, 0b10001, 0b10001, 0b10001, 0b11110],
        'E' => [0b11111, 0b10000, 0b11110, 0b10000, 0b11111],
        'F' => [0b11111, 0b10000, 0b11110, 0b10000, 0b10000],
        'I' => [0b01110, 0b00100, 0b00100, 0b00100, 0b01110],
        'K' => [0b10001, 0b10010, 0b11100, 0b10010, 0b10001],
        'L' => [0b10000, 0b10000, 0b10000, 0b10000, 0b11111],
        'N' => [0b10001, 0b11001, 0b10101, 0b10011, 0b10001],
        'O' => [0b01110, 0b10001, 0b10001, 0b10001, 0b01110],
        'T' => [0b11111, 0b00100, 0b00100, 0b00100, 0b00100],
        'W' => [0b10001, 0b10001, 0b10101, 0b10101, 0b01010],
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_on_the_screen_has_its_letters() {
        for word in ["100%", "0123456789", "DONE", "FAIL", "WAIT", "OK"] {
            let rows = large(word);
            assert!(rows.iter().all(|row| row.chars().count() == word.len() * 12), "{word}");
        }
        assert_eq!(large("é"), [const { String::new() }; ROWS]);
    }
}
