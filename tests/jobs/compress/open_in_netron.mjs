// node open_in_netron.mjs NETRON FILE…: each file through Netron's own reader, without a browser, as a line of JSON.
// NETRON is the folder of the Python package, which holds the viewer's modules.

import * as fs from 'node:fs';
import * as path from 'node:path';
import * as url from 'node:url';

const [folder, ...files] = process.argv.slice(2);
const load = (name) => import(url.pathToFileURL(path.join(folder, `${name}.js`)).href);
const { FileStream } = await load('node');

const host = {
    type: 'Node',
    window: { addEventListener: () => undefined },
    require: (id) => load(id),
    asset: async (file) => fs.readFileSync(path.join(folder, file), 'utf-8'),
    fetch: async (file) => { throw new Error(`the model is not in one file: it asks for '${file}'`); },
    event: () => undefined,
    exception: (error) => { throw error; },
    environment: () => null
};

const { ModelFactoryService } = await load('view');
const { Tensor } = await load('base');

for (const file of files) {
    const { size, mtimeMs } = fs.statSync(file);
    const context = {
        identifier: path.basename(file),
        stream: new FileStream(file, 0, size, mtimeMs),
        entries: new Map(),
        require: host.require,
        asset: host.asset,
        fetch: host.fetch,
        error: host.exception
    };
    const model = await new ModelFactoryService(host).open(context);
    const [graph] = model.modules;
    const sums = new Map();
    for (const value of graph.nodes.flatMap((node) => node.inputs).flatMap((input) => input.value)) {
        if (value && value.initializer) {
            const numbers = [new Tensor(value.initializer).value].flat(Infinity).map(Number);
            sums.set(value.name, numbers.reduce((sum, number) => sum + number, 0));
        }
    }
    process.stdout.write(`${JSON.stringify({
        file,
        format: model.format,
        nodes: graph.nodes.map((node) => node.type.name),
        undocumented: graph.nodes.filter((node) => !node.type.description).map((node) => node.type.name),
        inputs: graph.inputs.map((input) => [input.name, input.value[0].type.toString()]),
        outputs: graph.outputs.map((output) => [output.name, output.value[0].type.toString()]),
        sums: Object.fromEntries(sums)
    })}\n`);
}
