//! Colours: drawn as fixed ones, which `plot.css` puts others in place of where it is understood.

use plotters::style::RGBColor;

/// Text.
pub const TEXT: RGBColor = RGBColor(0x1f, 0x23, 0x28);
/// The grid.
pub const GRID: RGBColor = RGBColor(0xd0, 0xd7, 0xde);

/// Lines; the light ones of `plot.css`.
pub const LINES: [RGBColor; 8] = [
    RGBColor(0x1d, 0x5f, 0xd1),
    RGBColor(0xa8, 0x43, 0x00),
    RGBColor(0x1a, 0x7f, 0x37),
    RGBColor(0x82, 0x50, 0xdf),
    RGBColor(0xcf, 0x22, 0x2e),
    RGBColor(0x0b, 0x72, 0x85),
    RGBColor(0xbf, 0x39, 0x89),
    RGBColor(0x7a, 0x62, 0x00),
];

/// Names each colour's class beside it. No text is hit: its quotes are escaped.
pub fn classed(svg: &str) -> String {
    let lines = LINES.iter().enumerate().map(|(at, colour)| (*colour, format!("c{at}")));
    let others = [(TEXT, "t".to_owned()), (GRID, "g".to_owned())];
    let mut classed = svg.replace(" opacity=\"1\"", "");
    for (RGBColor(r, g, b), class) in lines.chain(others) {
        for attribute in [" stroke=", " fill="] {
            let drawn = format!("{attribute}\"#{r:02X}{g:02X}{b:02X}\"");
            classed = classed.replace(&drawn, &format!(" class=\"{class}\"{drawn}"));
        }
    }
    classed
}
