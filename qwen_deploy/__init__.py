"""The parts of the deploy helper. Each imports only from its own package and from lower lines of this drawing:

    7  rollback  commands                   the way back | what changes no endpoint
       hub_files  settings_page             two commands: the Hub's files, docs/settings.md
    6  proof  display                       does the endpoint serve? | plans and endpoints in tables
    5  intent                               what a deployment is to reach
    4  configuration  options  session      an endpoint's fields | the command line | what all commands work with
    3  cards  environment  image  pictures  records  screen
    2  runpod                               RunPod's side: schemas, refusals, client, api and jobs, rollout, in order
    1  errors

`deploy_qwen.py` tells the story that they serve; nothing here imports it. Nothing here imports torch or PIL: this runs
on the operator's machine, with the packages of requirements-deploy.txt.
"""
