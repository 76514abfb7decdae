// Renders formulae with KaTeX: reads a JSON list of [TeX, display], writes a JSON list of [HTML] or [null, error].
const katex = require(process.argv[2]);
const formulae = JSON.parse(require("fs").readFileSync(0, "utf8"));
const render = ([tex, displayMode]) => {
    try {
        return [katex.renderToString(tex, { displayMode, strict: "error" })];
    } catch (error) {
        return [null, error.message];
    }
};
process.stdout.write(JSON.stringify(formulae.map(render)));
