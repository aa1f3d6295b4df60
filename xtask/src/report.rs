//! `cargo xtask report`: a page of `tensorpress-report` in a browser, light, dark and as narrow as a phone. Pictures of it
//! lie in target/report; its texts must be there, and its console silent.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Outcome, cargo, execute, root};

/// What must be on the page once its script has run.
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

/// Looks at the page from within; a fault goes to the console.
const PROBE: &str = include_str!("report/probe.js");

/// Chromium's settings, by what a page is asked for with `prefers-color-scheme`.
const SCHEMES: [(&str, u32); 2] = [("dark", 0), ("light", 1)];

/// Makes the page and checks it.
pub fn run() -> Outcome {
    let folder = root().join("target/report");
    std::fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let page = folder.join("page.html");
    execute(&mut made(&page))?;
    let html = std::fs::read_to_string(&page).map_err(|e| format!("{}: {e}", page.display()))?;
    let browser = Browser::find(&folder)?;
    check_the_check(&browser, &folder)?;

    for (scheme, number) in SCHEMES {
        // The picture is of the page as it is; the probe changes it.
        let picture = folder.join(format!("{scheme}.png"));
        browser.open(&page, number, (1200, 3600), Some(&picture))?.silent(scheme)?;
        let probed = folder.join(format!("probe-{scheme}.html"));
        write(&probed, &with_script(&html, &PROBE.replace("SCHEME", scheme))?)?;
        let seen = browser.open(&probed, number, (1200, 900), None)?;
        seen.silent(scheme)?;
        seen.shows(&TEXTS)?;
        seen.shows(&["data-probed=\"true\""])?;
    }
    phone(&browser, &folder, &html)?;
    println!("{} bytes: {}", html.len(), folder.display());
    Ok(())
}

/// What makes the page: its path is the last argument.
fn made(page: &Path) -> Command {
    let mut command =
        cargo(&["run", "--quiet", "-p", "tensorpress-report", "--example", "page", "--"]);
    command.arg(page);
    command
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
    fn find(folder: &Path) -> Outcome<Self> {
        let named = std::env::var_os("CHROMIUM").map(PathBuf::from);
        let folders: Vec<PathBuf> =
            std::env::var_os("PATH").iter().flat_map(std::env::split_paths).collect();
        let found = ["chromium", "chromium-browser", "google-chrome", "chrome"]
            .into_iter()
            .flat_map(|name| folders.iter().map(move |folder| folder.join(name)))
            .find(|path| path.is_file());
        let program =
            named.or(found).ok_or("no chromium on PATH: install it, or name it by CHROMIUM")?;
        Ok(Self { program, profile: folder.join("profile") })
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
