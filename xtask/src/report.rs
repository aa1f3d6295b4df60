//! `cargo xtask report`: pages of made-up data, of a run of the program and of a curve in a browser, light, dark and as narrow
//! as a phone. Pictures of them lie in target/report; their texts must be there, and their consoles silent.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Outcome, cargo, execute, tools};

/// What must be on the page of made-up data once its script has run.
const TEXTS: [&str; 9] = [
    "<h1>Made-up model of 494 million weights at 4 bits</h1>",
    "262.4 MB",
    "KL divergence against size</h2>",
    "Q4_K_M",
    "Bits by block</h2>",
    "Sensitivity by block</h2>",
    "model.layers.17.mlp.down_proj.weight",
    "--recipe best --report page.html",
    // By the script.
    "<label class=\"filter\">",
];

/// The same of a run of the program, and of a curve.
const RUN: [&str; 6] = [
    "<h1>demo</h1>",
    "mean KL divergence",
    "best mix, expected",
    "model.layers.5.mlp.down_proj.weight",
    "would gain",
    "--target-bpw 3.5",
];
const CURVE: [&str; 5] = [
    "<h1>demo</h1>",
    "5 (3 judged)",
    "made and judged",
    "one level for all, expected",
    "tensorpress frontier demo",
];

/// Looks at the page from within; a fault goes to the console.
const PROBE: &str = include_str!("report/probe.js");

/// Chromium's settings, by what a page is asked for with `prefers-color-scheme`.
const SCHEMES: [(&str, u32); 2] = [("dark", 0), ("light", 1)];

/// Makes the pages and checks them; a failure where there is no browser.
pub fn run() -> Outcome {
    execute(&mut cargo(&["build", "-p", "tensorpress-cli"]))?;
    match checked()? {
        true => Ok(()),
        false => Err("no chromium, and none to be had: install it, or name it by CHROMIUM".into()),
    }
}

/// The same, or that there is no browser, and none to be had.
pub fn checked() -> Outcome<bool> {
    let folder = tools::target().join("report");
    std::fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let Some(browser) = Browser::find(&folder) else { return Ok(false) };
    check_the_check(&browser, &folder)?;
    let page = folder.join("page.html");
    let made = ["run", "--quiet", "-p", "tensorpress-report", "--example", "page", "--"];
    execute(cargo(&made).arg(&page))?;
    let html = look(&browser, &page, "page", &TEXTS)?;
    phone(&browser, &folder, &html)?;

    let program = tools::target().join("debug/tensorpress");
    if !program.is_file() {
        execute(&mut cargo(&["build", "-p", "tensorpress-cli"]))?;
    }
    let call = |arguments: &[&str], out: &str| {
        let mut command = Command::new(&program);
        command.current_dir(&folder).args(arguments).args(["--max-segments", "24", "--force"]);
        command.args(["--calib-windows", "8", "--out", out]);
        command
    };
    let report = ["--eval", "--report", "run.html"];
    execute(call(&["compress", "demo", "--target-bpw", "3.5"], "run").args(report))?;
    look(&browser, &folder.join("run.html"), "run", &RUN)?;
    let levels = "rtn(bits=3, group=64); rtn(bits=4, group=64); rtn(bits=8, group=64)";
    let along = ["frontier", "demo", "--points", "5", "--judged", "3", "--levels", levels];
    execute(&mut call(&along, "curve"))?;
    look(&browser, &folder.join("curve/report.html"), "curve", &CURVE)?;
    println!("pictures: {}", folder.display());
    Ok(true)
}

/// Draws a page in light and in dark, and looks at it.
fn look(browser: &Browser, page: &Path, name: &str, texts: &[&str]) -> Outcome<String> {
    let html = std::fs::read_to_string(page).map_err(|e| format!("{}: {e}", page.display()))?;
    let folder = browser.profile.parent().ok_or("no folder")?;
    for (scheme, number) in SCHEMES {
        // The picture is of the page as it is; the probe changes it.
        let picture = folder.join(format!("{name}-{scheme}.png"));
        browser.open(page, number, (1200, 3600), Some(&picture))?.silent(scheme)?;
        let probed = folder.join(format!("probe-{name}-{scheme}.html"));
        write(&probed, &with_script(&html, &PROBE.replace("SCHEME", scheme))?)?;
        let seen = browser.open(&probed, number, (1200, 900), None)?;
        seen.silent(scheme)?;
        seen.shows(texts)?;
        seen.shows(&["data-probed=\"true\""])?;
    }
    println!("{name}: {} bytes", html.len());
    Ok(html)
}

/// A window is never as narrow as a phone, but a frame is.
fn phone(browser: &Browser, folder: &Path, html: &str) -> Outcome {
    let (framed, frame) = (folder.join("probe-narrow.html"), folder.join("phone.html"));
    write(&framed, &with_script(html, &PROBE.replace("SCHEME", "light"))?)?;
    let wide = "width=390 height=3400 style=\"border:1px solid\"";
    let frames = format!(
        "<!DOCTYPE html><title>phone</title><iframe {wide} src=\"page.html\"></iframe>\
         <iframe {wide} src=\"probe-narrow.html\"></iframe>"
    );
    write(&frame, &frames)?;
    let picture = folder.join("phone.png");
    browser.open(&frame, 1, (820, 3500), Some(&picture))?.silent("phone")
}

/// Pages with a fault in what is looked for: the check must see each.
fn check_the_check(browser: &Browser, folder: &Path) -> Outcome {
    let broken = folder.join("broken.html");
    write(&broken, "<!DOCTYPE html><title>broken</title><script>console.error('seen')</script>")?;
    let seen = browser.open(&broken, 1, (800, 600), None)?;
    match (seen.silent("broken"), seen.shows(&TEXTS)) {
        (Err(said), Err(_)) if said.contains("seen") => {}
        _ => return Err("an error on the console, or a missing text, goes unseen".into()),
    }
    let fault = "<svg width=40 height=20><text x=0 y=15>clipped, clipped</text></svg>";
    let clipped = format!("<!DOCTYPE html><title>clipped</title>{fault}<script>{PROBE}</script>");
    write(&broken, &clipped)?;
    match browser.open(&broken, 1, (800, 600), None)?.silent("clipped") {
        Err(said) if said.contains("clipped") => Ok(()),
        _ => Err("a clipped text goes unseen".into()),
    }
}

/// The page with a script at its end.
fn with_script(html: &str, script: &str) -> Outcome<String> {
    let (page, rest) = html.rsplit_once("</body>").ok_or("the page has no end")?;
    Ok(format!("{page}<script>\n{script}</script>\n</body>{rest}"))
}

fn write(path: &Path, text: &str) -> Outcome {
    std::fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()))
}

/// Chromium, or what is called by another of its names.
struct Browser {
    program: PathBuf,
    profile: PathBuf,
}

/// What a browser made of a page.
struct Seen {
    document: String,
    console: Vec<String>,
}

impl Browser {
    fn find(folder: &Path) -> Option<Self> {
        let named = std::env::var_os("CHROMIUM").map(PathBuf::from);
        let folders: Vec<PathBuf> =
            std::env::var_os("PATH").iter().flat_map(std::env::split_paths).collect();
        let found = ["chromium", "chromium-browser", "google-chrome", "chrome"]
            .into_iter()
            .flat_map(|name| folders.iter().map(move |folder| folder.join(name)))
            .find(|path| path.is_file());
        // Debian's, where it can be had.
        let debian = || {
            let installed = tools::programs(&["chromium"], &["chromium"]);
            installed.then(|| PathBuf::from("chromium"))
        };
        let program = named.or(found).or_else(debian)?;
        Some(Self { program, profile: folder.join("profile") })
    }

    /// Opens a page without a window, and draws it if there is a path for that.
    fn open(
        &self,
        page: &Path,
        scheme: u32,
        (width, height): (u32, u32),
        picture: Option<&Path>,
    ) -> Outcome<Seen> {
        let mut command = Command::new(&self.program);
        command
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"])
            .args(["--disable-dev-shm-usage"])
            .args(["--no-first-run", "--disable-background-networking", "--disable-sync"])
            .args(["--disable-component-update", "--disable-quic", "--dump-dom"])
            // Lines of the console come among those of the log.
            .args(["--enable-logging=stderr", "--log-level=0"])
            .arg(format!("--blink-settings=preferredColorScheme={scheme}"))
            .arg(format!("--window-size={width},{height}"))
            .arg(format!("--user-data-dir={}", self.profile.display()));
        command.args(picture.map(|path| format!("--screenshot={}", path.display())));
        command.arg(format!("file://{}", page.display()));
        let output = command.output().map_err(|e| format!("{}: {e}", self.program.display()))?;
        let log = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            return Err(format!("{}: {}\n{log}", self.program.display(), output.status));
        }
        if let Some(path) = picture.filter(|path| !path.is_file()) {
            return Err(format!("{}: not drawn\n{log}", path.display()));
        }
        let console = log.lines().filter(|line| line.contains(":CONSOLE")).map(str::to_owned);
        let document = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok(Seen { console: console.collect(), document })
    }
}

impl Seen {
    /// A page of ours says nothing: a line of any level is a fault.
    fn silent(&self, what: &str) -> Outcome {
        match self.console.is_empty() {
            true => Ok(()),
            false => Err(format!("{what}: the console says\n{}", self.console.join("\n"))),
        }
    }

    fn shows(&self, texts: &[&str]) -> Outcome {
        match texts.iter().find(|text| !self.document.contains(**text)) {
            Some(missing) => Err(format!("the page does not show `{missing}`")),
            None => Ok(()),
        }
    }
}
