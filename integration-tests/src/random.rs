//! Random cases that are the same in every run: a failure is repeated by its seed.

/// SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
#[derive(Debug, Clone)]
pub struct Random(u64);

/// What an escape, a quote or a line could be broken by.
pub const HOSTILE: &[&str] = &[
    "",
    "\"",
    "\\",
    "\n",
    "\\n",
    "\\\"",
    "\\\\n\n\"",
    "ends in a backslash\\",
    "\"quoted\"",
    "a=\"b\",c=\"d\"",
    "}",
    "{",
    "} 1\nforged_metric 2\n",
    "\n# EOF\n",
    "# HELP a b",
    " # {trace=\"1\"} 2",
    "tab\tand return\r",
    "nul\0",
    "line\u{2028}separator\u{85}",
    "  spaces before and after  ",
    "emoji 🦀👩‍👩‍👧‍👦",
    "combining e\u{301}, right-to-left \u{202e}abc",
    "ünï©ödé 数字",
    "+Inf",
    "NaN",
];

impl Random {
    /// The generator that a seed stands for.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// Any 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`, which is not 0. (The bias is far below what these tests could notice.)
    pub fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    /// True once in `n` times.
    pub fn once_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// One of the choices.
    pub fn one_of<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.below(choices.len())]
    }

    /// Text that is hostile in one way or in several, and once in a while 10 kB long.
    pub fn hostile_text(&mut self) -> String {
        let parts = 1 + self.below(3);
        let mut text: String = (0..parts).map(|_| *self.one_of(HOSTILE)).collect();
        if self.once_in(40) && !text.is_empty() {
            text = text.repeat(10_000 / text.len() + 1);
        }
        text
    }

    /// Any double: all bit patterns, and the special ones far more often than their share.
    pub fn double(&mut self) -> f64 {
        const SPECIAL: &[f64] = &[
            0.0,
            -0.0,
            1.0,
            -1.0,
            0.1,
            f64::NAN,
            f64::INFINITY,
            f64::NEG_INFINITY,
            f64::MAX,
            f64::MIN,
            f64::MIN_POSITIVE,
            5e-324,
            -5e-324,
            9_007_199_254_740_993.0,
            1e21,
            1e-7,
        ];
        match self.below(3) {
            0 => *self.one_of(SPECIAL),
            1 => f64::from_bits(self.bits()),
            _ => self.below(1_000_000) as f64 / 1_000.0,
        }
    }
}
