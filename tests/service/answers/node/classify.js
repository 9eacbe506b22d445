// A client that knows nothing of Vistazo but its .proto: classifies each file that it is given and prints
// one JSON object a line, the answer or the error.
//
//   node classify.js HOST:PORT PROTO FOLDER_OF_PROTOS MODEL FILE...
"use strict";

const fs = require("node:fs");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const [address, proto, include, model, ...files] = process.argv.slice(2);
const definition = loader.loadSync(proto, { includeDirs: [include], keepCase: true, defaults: true });
const { ClassificationService } = grpc.loadPackageDefinition(definition).vistazo.v1;
const client = new ClassificationService(address, grpc.credentials.createInsecure(), {
  "grpc.enable_http_proxy": 0,
  "grpc.enable_retries": 0,
});

function classify(file) {
  const request = { model, images: [{ encoded: fs.readFileSync(file) }] };
  const deadline = new Date(Date.now() + 30000);
  return new Promise((resolve) => {
    client.Classify(request, { deadline }, (error, response) => {
      if (error === null) {
        resolve({ response });
        return;
      }
      const trailers = error.metadata.getMap();
      resolve({ code: grpc.status[error.code], details: error.details, trailers });
    });
  });
}

async function main() {
  for (const file of files) {
    console.log(JSON.stringify(await classify(file)));
  }
  client.close();
}

main();
