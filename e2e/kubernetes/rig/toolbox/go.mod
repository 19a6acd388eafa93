module gregor.dev/e2e/kubernetes/toolbox

go 1.26.0
